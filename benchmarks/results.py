"""The project's figures: one entry of `benchmarks/results.json` per promise, written by what measures it.

from benchmarks.results import record

record("house.circles", 0, "<= 0", unit="circles", command="python -m benchmarks.house", note="all files of clv/")
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from clv.data.workdir import write_text

REPO = Path(__file__).resolve().parent.parent
FILE = Path(__file__).with_name("results.json")
AREAS = ("house", "log", "experts", "serving", "tasks", "decide", "messages", "trust", "console", "connect")
TARGET = re.compile(r"|<= -?[\d.e-]+|>= -?[\d.e-]+|-?[\d.e-]+ to -?[\d.e-]+")


def record(
    name: str,
    value: float | bool,
    target: str = "",
    *,
    unit: str = "",
    command: str,
    note: str = "",
    file: Path = FILE,
) -> None:
    """Writes or replaces the entry `name` and keeps the others.

    target: `<= x`, `>= x` or `a to b`; empty where the value is true or false. Raises ValueError for a name outside
    AREAS, for a target of another form, and for a number without a target's form.
    """
    if name.split(".")[0] not in AREAS or not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)+", name):
        raise ValueError(f"result {name!r} must look like house.some_figure and begin with one of {', '.join(AREAS)}")
    if not TARGET.fullmatch(target):
        raise ValueError(f"target {target!r} of {name} must be '<= x', '>= x', 'a to b' or empty")
    entries = {entry["name"]: entry for entry in json.loads(file.read_text())} if file.exists() else {}
    entries[name] = {
        "name": name,
        "value": value,
        "target": target,
        "unit": unit,
        "command": command,
        "commit": commit(),
        "note": note,
    }
    lines = [json.dumps(entries[key], ensure_ascii=False) for key in sorted(entries)]
    write_text(file, "[\n" + ",\n".join(lines) + "\n]\n")


def commit() -> str:
    """The commit that is checked out, with `+` where files differ from it."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPO, capture_output=True, text=True)
    changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=REPO, capture_output=True, text=True)
    return found.stdout.strip() + ("+" if changed.stdout.strip() else "")
