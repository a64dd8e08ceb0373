"""Fenced blocks of the documentation's pages, and the shell commands in them."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PAGES = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]
FENCE = re.compile(r"^ *```(\w*) *(?:title=\"(.+?)\")?.*$")
MARK = re.compile(r"^ *<!-- (.*?) -->$")
STARTS_WITH = re.compile(r"^<!-- starts with: (.*?) -->$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line of its fence, and the comment on the line before the fence, if any."""

    page: Path
    line: int
    language: str
    title: str | None
    mark: str | None
    code: str

    @property
    def name(self) -> str:
        """Page and line, as an editor opens them."""
        return f"{self.page.relative_to(REPO)}:{self.line}"

    @property
    def skipped(self) -> bool:
        """Whether the block never runs."""
        return self.mark is not None and self.mark.startswith("not run")

    @property
    def slow(self) -> bool:
        """Whether the block runs in the slow tests only."""
        return self.mark is not None and self.mark.startswith("slow")


def blocks(page: Path) -> list[Block]:
    """Returns the fenced blocks of a page, in order."""
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    numbers = iter(range(len(lines)))
    for number in numbers:
        if fence := FENCE.match(lines[number]):
            end = next(later for later in numbers if lines[later].strip() == "```")
            mark = MARK.match(lines[number - 1]) if number else None
            code = textwrap.dedent("\n".join(lines[number + 1 : end])) + "\n"
            found.append(Block(page, number + 1, fence[1], fence[2], mark[1] if mark else None, code))
    return found


def starting_files(page: Path) -> list[str]:
    """Returns the paths that a page's blocks expect to exist, from its comment `<!-- starts with: PATHS -->`."""
    found = STARTS_WITH.search(page.read_text(encoding="utf-8"))
    return found[1].split() if found else []


def commands(code: str) -> Iterator[list[str]]:
    """Yields the words of each command line of a shell block, without what follows a pipe, a redirection or &&."""
    for line in code.replace("\\\n", " ").splitlines():
        # A line of a quoted body that spans several lines is no command.
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        part: list[str] = []
        for word in [*words, "&&"]:
            if word in {"|", ">", ">>", "&&", ";"}:
                yield from [part] if part else []
                part = []
            else:
                part.append(word)


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]
