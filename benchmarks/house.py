"""The state of the house: circles, folder sizes, class names, mirrored tests, private vocabulary, lines.

python -m benchmarks.house            prints the figures and what is left of the private vocabulary
python -m benchmarks.house --record   writes them into benchmarks/results.json too
python -m benchmarks.house --record --tests no_circles blocks_run --time test demo   runs those tests and targets first
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

from benchmarks.results import record

REPO = Path(__file__).resolve().parent.parent
COMMAND = "python -m benchmarks.house --record"
MOST_MODULES = 14

# Words of the private vocabulary that have no other sense here.
PRIVATE = (
    r"sentinels?",
    r"peers?",
    r"rivals?",
    r"workshop",
    r"roll ?call",
    r"ripe",
    r"in_vain|in vain",
    r"furnish\w*",
    r"dear",
    r"came",
)
# Words of the private vocabulary that may stay in another sense: (regular expression of a line in that sense, reason).
SENSES: dict[str, tuple[str, str]] = {
    r"anchors?": (r"[xy]anchor", "plotly's own option"),
    r"books?": (
        r"(?i)runbook|[Hh]andbook|notebook|bookstore|book shop|facebook|\bbook_|the book|a book|books? ?\(",
        "goods",
    ),
    r"wish": (r"wishlist|as you wish", "an event type"),
    r"gates?": (r"(?i)gated|recurrent|investigate|gate_proj|update_gate", "gates of recurrent cells"),
    r"sign(?:s|ed)?": (
        r"signs? (of|that)|currency sign|[\"(.]sign\b|\bsign ?[=*>,:_)(-]|sign_|signed|minus sign|any\(sign|one sign",
        "arithmetic",
    ),
    r"apart|aside": (r"(days|weeks|months) apart", "distances in time"),
    r"says?|said|tells?|told|believe[sd]?": (
        r"(?i)said ?=|\bSAID\w*|\.said|\"said\"|`said`|said:",
        "a column of histories",
    ),
    r"probes?": (r"(?i)readiness|liveness|kube|startup|probe:|Probe", "probes of Kubernetes"),
}


@dataclass(frozen=True)
class Options:
    """What to do with the figures."""

    record: bool = False
    """write them into benchmarks/results.json"""
    show: int = 40
    """how many places of the private vocabulary to print"""
    tests: tuple[Literal["no_circles", "blocks_run"], ...] = ()
    """promises that tests check: no circle of imports between files; every block of README and docs runs as written"""
    time: tuple[Literal["test", "demo"], ...] = ()
    """targets of make to time"""


def modules() -> list[Path]:
    """Every source file of clv/ that holds more than a docstring."""
    return [
        path
        for path in sorted(REPO.glob("clv/**/*.py"))
        if len(ast.parse(path.read_text(encoding="utf-8")).body) > 1 or path.name != "__init__.py"
    ]


def mirrored(path: Path) -> Path:
    """The test file of a source file."""
    below = path.relative_to(REPO / "clv")
    return REPO / "tests" / below.parent / f"test_{below.name}"


def largest_folder() -> int:
    """Modules of the folder of clv/ that holds most of them."""
    return max(Counter(path.parent for path in REPO.glob("clv/**/*.py") if path.name != "__init__.py").values())


def shared_class_names() -> int:
    """Public classes of clv/ whose name another one has."""
    names = Counter(
        node.name
        for path in REPO.glob("clv/**/*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    return sum(count > 1 for count in names.values())


class Occurrence(NamedTuple):
    """A word of the private vocabulary; `kept` is the reason why it may stay, empty for its old sense."""

    file: str
    number: int
    word: str
    line: str
    kept: str


def private_words() -> Iterator[Occurrence]:
    """Every occurrence of PRIVATE and SENSES in code, jobs, docs and README."""
    files = [*REPO.glob("clv/**/*"), *REPO.glob("ray_jobs/**/*"), *REPO.glob("docs/**/*"), REPO / "README.md"]
    for path in sorted(files):
        if path.suffix not in {".py", ".md", ".j2", ".yaml", ".ipynb"} or not path.is_file():
            continue
        if path.name == "glossary.md":  # it explains the old words
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for word in (*PRIVATE, *SENSES):
                if re.search(rf"(?<![A-Za-z])(?:{word})(?![A-Za-z])", line, re.I):
                    pattern, reason = SENSES.get(word, ("(?!)", ""))
                    kept = reason if re.search(pattern, line) else ""
                    yield Occurrence(str(path.relative_to(REPO)), number, word, line.strip(), kept)


TESTS = {"no_circles": "tests/test_layers.py", "blocks_run": "tests/docs"}


def passes(tests: str) -> bool:
    """Whether all tests of a file or folder pass, the slow ones included; prints what pytest prints."""
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "", tests], cwd=REPO).returncode == 0


SECONDS_ALLOWED = {"test": 600, "demo": 405}


def seconds_of(target: str) -> float:
    """Wall-clock seconds of `make TARGET`, installation aside; CalledProcessError where it fails."""
    subprocess.run(["make", "install"], cwd=REPO, check=True)
    start = time.monotonic()
    subprocess.run(["make", target], cwd=REPO, check=True)
    return time.monotonic() - start


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    sources = modules()
    tested = [path for path in sources if mirrored(path).exists()]
    found = list(private_words())
    words = [one for one in found if not one.kept]
    lines = sum(len(p.read_text(encoding="utf-8").splitlines()) for p in REPO.glob("clv/**/*.py"))
    for one in words[: options.show]:
        print(f"{one.file}:{one.number}: {one.word}: {one.line[:100]}")
    for (word, reason), count in Counter((one.word, one.kept) for one in found if one.kept).items():
        print(f"{count} lines with {word} stay: {reason}")
    for path in sources:
        if path not in tested:
            print(f"no test at the mirrored path: {path.relative_to(REPO)}")
    share = len(tested) / len(sources)
    readme = len((REPO / "README.md").read_text(encoding="utf-8").splitlines())
    print(f"largest folder {largest_folder()} modules, {shared_class_names()} class names used twice")
    print(f"{share:.3f} of {len(sources)} source files have a mirrored test, {len(words)} private words")
    print(f"{lines:,} lines in clv/, {readme} in README.md")
    passed = {name: passes(TESTS[name]) for name in options.tests}
    seconds = {target: seconds_of(target) for target in options.time}
    for target, taken in seconds.items():
        print(f"make {target}: {taken:.0f} s")
    if options.record:
        for name, holds in passed.items():
            record(f"house.{name}", holds, command=f"{COMMAND} --tests {name}", note=f"pytest {TESTS[name]}")
        for target, taken in seconds.items():
            record(f"house.{target}_seconds", round(taken), f"<= {SECONDS_ALLOWED[target]}", unit="s",
                   command=f"{COMMAND} --time {target}", note="2 cores, idle, installation aside")  # fmt: skip
        record("house.largest_folder", largest_folder(), f"<= {MOST_MODULES}", unit="modules", command=COMMAND)
        record("house.shared_class_names", shared_class_names(), "<= 0", unit="names", command=COMMAND)
        record("house.mirrored_tests", round(share, 4), ">= 0.9", unit="share of source files", command=COMMAND)
        record("house.private_words", len(words), "<= 0", unit="places", command=COMMAND)
        record("house.lines", lines, "<= 23000", unit="lines of clv/", command=COMMAND,
               note="23,843 before the move; at least 800 less before new capabilities")  # fmt: skip
        record("house.readme_lines", readme, "<= 120", unit="lines", command=COMMAND)


if __name__ == "__main__":
    main()
