"""Does the test of a source file fail when the file is broken? Samples mutations and runs the mirrored tests.

    python -m benchmarks.mutations --out out/mutations.jsonl --record

Every source file of clv/ with a test at the mirrored path is mutated in a copy of the committed tree: an operator, a
comparison, a constant, a condition or a returned value of a function is changed, at a seeded place. The file counts as
covered when its test fails under one of the first `--tries` mutations; a first mutation may be equivalent to the
original. Tests that are slow or kill processes are left out, and those that need Ray where a file has others. An
interrupted run continues with --out.
"""

from __future__ import annotations

import ast
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from benchmarks.house import REPO, mirrored, modules
from benchmarks.output import reserve
from benchmarks.results import record

COMMAND = "python -m benchmarks.mutations --out out/mutations.jsonl --record"
SWAPPED: dict[type[ast.AST], str] = {
    ast.Lt: ">=", ast.LtE: ">", ast.Gt: "<=", ast.GtE: "<", ast.Eq: "!=", ast.NotEq: "==", ast.In: "not in",
    ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is", ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*",
    ast.And: "or", ast.Or: "and", ast.FloorDiv: "*", ast.Mod: "*", ast.Pow: "*", ast.BitAnd: "|", ast.BitOr: "&",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """How mutations are sampled and where the results are kept."""

    out: Path
    tries: int = 3
    seed: int = 0
    processes: int = 2
    only: str = ""
    """only files whose path contains this text"""
    record: bool = False
    """write the share into benchmarks/results.json"""


def mutants(source: str, rng: random.Random) -> Iterator[tuple[int, str, str]]:
    """(line, what was changed, mutated source) in random order; only bodies of functions are changed."""
    tree = ast.parse(source)
    places: list[tuple[ast.AST, str]] = []
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for statement in function.body:
            for node in ast.walk(statement):
                if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
                    left, right = ast.unparse(node.left), ast.unparse(node.comparators[0])
                    places.append((node, f"({left} {SWAPPED[type(node.ops[0])]} {right})"))
                elif isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
                    places.append(
                        (node, f"({ast.unparse(node.left)} {SWAPPED[type(node.op)]} {ast.unparse(node.right)})")
                    )
                elif isinstance(node, ast.BoolOp):
                    joined = f" {SWAPPED[type(node.op)]} ".join(f"({ast.unparse(v)})" for v in node.values)
                    places.append((node, f"({joined})"))
                elif isinstance(node, ast.Return) and node.value is not None:
                    places.append((node, "return None"))
                elif isinstance(node, ast.IfExp):
                    places.append(
                        (
                            node,
                            f"({ast.unparse(node.orelse)} if {ast.unparse(node.test)} else {ast.unparse(node.body)})",
                        )
                    )
                elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
                    places.append((node, repr(node.value + 1)))
    rng.shuffle(places)
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    raw = source.encode()
    for node, text in places:
        begin = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        mutated = (raw[:begin] + text.encode() + raw[end:]).decode()
        try:
            ast.parse(mutated)
        except SyntaxError:  # inside an f-string, say
            continue
        if ast.dump(ast.parse(mutated)) != ast.dump(tree):
            yield node.lineno, f"{raw[begin:end].decode()[:60]!r} -> {text[:60]!r}", mutated  # type: ignore[attr-defined]


def exit_status(folder: Path, environment: dict[str, str], *command: str) -> int:
    """Of a command that may take five minutes."""
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=300).returncode


def killed(path: Path, copy: Path, options: Options) -> dict[str, object]:
    """Whether the mirrored test fails under one of the first mutations of the file, and which they were."""
    name = path.relative_to(REPO)
    target = copy / name
    source = target.read_text(encoding="utf-8")
    test = mirrored(path).relative_to(REPO)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(test), "-m"]
    quick = "not slow and not faults and not ray"
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    run = partial(exit_status, copy, environment)
    tried = []
    try:
        for line, what, mutated in mutants(source, random.Random(f"{options.seed} {name}")):
            target.write_text(mutated, encoding="utf-8")
            try:
                code = run(*command, quick)
                if code == 5:  # every test of the file needs Ray
                    quick = "not slow and not faults"
                    code = run(*command, quick)
            except subprocess.TimeoutExpired:
                code = 1
            tried.append(f"line {line}: {what}: {'survived' if code == 0 else 'killed' if code in (1, 2) else code}")
            if code in (1, 2):
                return {"file": str(name), "killed": True, "tried": tried}
            if len(tried) == options.tries or code == 5:
                break
    finally:
        target.write_text(source, encoding="utf-8")
    return {"file": str(name), "killed": not tried, "tried": tried or ["nothing to mutate"]}


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    reserve(options.out)
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    known = {row["file"] for row in done}
    wanted = [p for p in modules() if mirrored(p).exists() and options.only in str(p)]
    missing = [path for path in wanted if str(path.relative_to(REPO)) not in known]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.processes) as pool:
        copies = [Path(folder) / str(i) for i in range(options.processes)]
        for copy in copies:
            copy.mkdir()
            archive = subprocess.run(["git", "archive", "HEAD"], cwd=REPO, capture_output=True, check=True)
            subprocess.run(["tar", "x", "-C", str(copy)], input=archive.stdout, check=True)

        def work(number: int) -> None:
            for path in missing[number :: options.processes]:
                row = killed(path, copies[number], options)
                done.append(row)
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{'killed  ' if row['killed'] else 'SURVIVED'} {row['file']}: {row['tried']}", flush=True)

        list(pool.map(work, range(options.processes)))
    share = sum(bool(row["killed"]) for row in done) / max(len(done), 1)
    print(f"{share:.3f} of {len(done)} mirrored tests fail under a sampled mutation of their source")
    if options.record:
        record("house.mutations_killed", round(share, 4), ">= 0.9", unit="share of mirrored tests", command=COMMAND,
               note=f"{len(done)} files, seed {options.seed}, up to {options.tries} mutations each")  # fmt: skip


if __name__ == "__main__":
    main()
