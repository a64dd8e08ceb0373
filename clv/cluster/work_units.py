"""Numbered tasks, run here or on Ray Data; what a finished one returned lies on disk, so that it is never redone."""

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
    """Runs task(0..count-1) as Ray Data map tasks; yields the results as they come, in no fixed order.

    At the end what Ray Data measured of its operators (times, rows, memory of the tasks) is added to `operators`.
    """
    import ray

    if not count:
        return
    # Default resources on purpose: only then does Ray fuse the range with the map into one task each.
    options = {"compute": ray.data.TaskPoolStrategy(size=workers)} if workers else {}
    rows = ray.data.range(count, override_num_blocks=count).map_batches(
        partial(_call, task), batch_size=1, batch_format="numpy", **options
    )
    for row in rows.iter_rows():
        result = json.loads(row["result"])
        if "failed" in result:
            raise (SpecError if result["failed"] == "SpecError" else OSError)(result["message"])
        yield result
    if operators is not None:
        operators.append(rows.stats())


def _call(task: Task, batch: dict[str, Any]) -> dict[str, Any]:
    out = []
    for number in batch["id"]:
        try:
            result = task(int(number))
        except (SpecError, OSError) as error:
            # What the user can mend travels as a result: raised here, Ray would wrap it in pages of its own traceback.
            result = {"failed": type(error).__name__, "message": str(error)}
        out.append(json.dumps(result))
    return {"result": np.array(out, dtype=object)}


def remembered(run: Runner, task: Task, numbers: Sequence[int], journal: Path) -> Iterator[dict[str, Any]]:
    """task(number) of every number; a result that an earlier run left in `journal` is taken from there.

    A task must write its files so that doing it twice, or half and then whole, leaves the same.
    """
    journal.mkdir(parents=True, exist_ok=True)
    left = []
    for number in numbers:
        path = _entry(journal, number)
        if path.is_file():
            yield json.loads(path.read_text(encoding="utf-8"))
        else:
            left.append(number)
    yield from run(partial(_remember, task, left, journal), len(left))


def _remember(task: Task, numbers: Sequence[int], journal: Path, index: int) -> dict[str, Any]:
    path = _entry(journal, numbers[index])
    if path.is_file():  # a task that Ray repeats because its worker died after the entry was made
        return dict(json.loads(path.read_text(encoding="utf-8")))
    result = task(numbers[index])
    write_text(path, json.dumps(result))
    return result


def _entry(journal: Path, number: int) -> Path:
    return journal / f"{number:06d}.json"
