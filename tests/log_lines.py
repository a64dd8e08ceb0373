"""The lines that clv logs, for tests that check them or act on them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def each_line(call: Callable[[str], None], name: str = "clv") -> Iterator[None]:
    """Calls `call` with every line of the logger `name` and of those below it; an error that it raises reaches the
    code that logs."""
    logger, handler = logging.getLogger(name), logging.Handler()
    level = logger.level
    handler.emit = lambda record: call(record.getMessage())  # type: ignore[method-assign]
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
