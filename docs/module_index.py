"""Hook of mkdocs: lists every module of the package, with the first sentence of its docstring, in modules.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
PLACEHOLDER = "<!-- modules -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Returns the page with the list of modules in place of its placeholder; called by mkdocs for every page."""
    return markdown.replace(PLACEHOLDER, module_index()) if PLACEHOLDER in markdown else markdown


def module_index() -> str:
    """Returns a table of modules for each package of clv/ and for ray_jobs/, as Markdown."""
    packages: dict[Path, list[str]] = {}
    for path in sorted([*REPO.glob("clv/**/*.py"), *REPO.glob("ray_jobs/*.py")]):
        sentence = first_sentence(path)
        if path.name == "__init__.py":
            packages.setdefault(path.parent, []).insert(0, sentence)
        else:
            packages.setdefault(path.parent, [""]).append(f"| `{path.name}` | {sentence} |")
    parts = []
    for folder, (about, *rows) in sorted(packages.items()):
        parts += [f"### {folder.relative_to(REPO)}/", "", about, ""]
        parts += ["| File | Content |", "|---|---|", *rows, ""] if rows else []
    return "\n".join(parts)


def first_sentence(path: Path) -> str:
    """Returns the first sentence of a module's docstring on one line, without characters that end a table's cell."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.?])\s+(?=[A-Z`(])", paragraph)[0].replace("|", "\\|")
