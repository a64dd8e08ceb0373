"""Run numbered tasks in this process or on Ray Data, with a journal of results, so that no finished task runs again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clv.data.spec.models import SpecError
from clv.data.workdir import write_text

Task = Callable[[int], dict[str, Any]]
Runner = Callable[[Task, int], Iterator[dict[str, Any]]]


def run_here(task: Task, count: int) -> Iterator[dict[str, Any]]:
    """Runs the tasks one after the other in this process."""
    yield from map(task, range(count))


def run_on_ray(
    task: Task, count: int, workers: int | None = None, operators: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Runs task(0), ..., task(count - 1) as Ray Data map tasks; yields the results in no fixed order.

    `workers` limits how many run at once. At the end the statistics of Ray Data (times, rows, memory of the tasks) are
    added to `operators`. Raises SpecError or OSError if a task does.
    """
    import ray

    if not count:
        return
    # Ray fuses range and map into one task each only with default resources.
    options = {"compute": ray.data.TaskPoolStrategy(size=workers)} if workers else {}
    rows = ray.data.range(count, override_num_blocks=count).map_batches(
        partial(_run_batch, task), batch_size=1, batch_format="numpy", **options
    )
    for row in rows.iter_rows():
        result = json.loads(row["result"])
        if "failed" in result:
            raise (SpecError if result["failed"] == "SpecError" else OSError)(result["message"])
        yield result
    if operators is not None:
        operators.append(rows.stats())


def _run_batch(task: Task, batch: dict[str, Any]) -> dict[str, Any]:
    out = []
    for number in batch["id"]:
        try:
            result = task(int(number))
        except (SpecError, OSError) as error:
            # Errors that a user can mend are returned: Ray would wrap a raised one in pages of its own traceback.
            result = {"failed": type(error).__name__, "message": str(error)}
        out.append(json.dumps(result))
    return {"result": np.array(out, dtype=object)}


def run_with_journal(run: Runner, task: Task, numbers: Sequence[int], journal: Path) -> Iterator[dict[str, Any]]:
    """Yields task(number) for every number; results that an earlier run wrote to `journal` are read from there.

    A task that is killed or repeated must leave the same files in the end.
    """
    journal.mkdir(parents=True, exist_ok=True)
    remaining = []
    for number in numbers:
        path = journal / f"{number:06d}.json"
        if path.is_file():
            yield json.loads(path.read_text(encoding="utf-8"))
        else:
            remaining.append((number, path))
    yield from run(partial(_run_once, task, remaining), len(remaining))


def _run_once(task: Task, remaining: Sequence[tuple[int, Path]], index: int) -> dict[str, Any]:
    number, path = remaining[index]
    if path.is_file():  # Ray repeats a task whose worker died after it wrote its result
        return dict(json.loads(path.read_text(encoding="utf-8")))
    result = task(number)
    write_text(path, json.dumps(result))
    return result
