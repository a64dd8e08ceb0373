"""Writes the list of modules in architecture.md from their docstrings; `make format` runs it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
PAGE = REPO / "docs" / "architecture.md"
BEGIN, END = "<!-- modules: written by docs/module_index.py -->\n", "<!-- end of modules -->\n"


def with_index(page: str) -> str:
    """Returns the page with the list of modules between its two markers. Raises ValueError if a marker is missing."""
    before, old = page.split(BEGIN)
    return before + BEGIN + "\n" + module_index() + "\n" + END + old.split(END)[1]


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
        parts += [f"### {folder.relative_to(REPO)}/", *(["", about] if about else []), ""]
        parts += ["| File | Content |", "|---|---|", *rows, ""] if rows else []
    return "\n".join(parts)


def first_sentence(path: Path) -> str:
    """Returns the first sentence of a module's docstring on one line, without characters that end a table's cell."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.?])\s+(?=[A-Z`(])", paragraph)[0].replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(with_index(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
