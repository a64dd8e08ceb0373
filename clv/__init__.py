"""Customer lifetime value: histories, an BTYD-based BERT-style model, honest evaluation and serving, on Ray.

`clv.fit(events, columns)` and `clv.load(folder)` are the way in from a notebook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clv.version import __version__

if TYPE_CHECKING:
    from clv.api import Model, fit, load

__all__ = ["Model", "__version__", "fit", "load"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: torch takes seconds, and most of the package does without it.
    if name in {"Model", "fit", "load"}:
        from clv import api

        return getattr(api, name)
    raise AttributeError(f"module 'clv' has no attribute {name!r}")
