"""Numbered tasks: finished ones are read from the journal, and an error of a task on Ray keeps its type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.data

from clv.cluster.work_units import run_here, run_on_ray, run_with_journal
from clv.data.spec.models import SpecError


def test_a_task_that_has_finished_does_not_run_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def square(number: int) -> dict[str, Any]:
        calls.append(number)
        if number == 7 and calls.count(7) == 1:
            raise OSError("no space left on device")
        return {"number": number, "square": number**2}

    with pytest.raises(OSError, match="no space left"):
        list(run_with_journal(run_here, square, [2, 5, 7, 9], tmp_path / "journal"))
    results = list(run_with_journal(run_here, square, [2, 5, 7, 9], tmp_path / "journal"))
    assert calls == [2, 5, 7, 7, 9]
    assert {result["number"]: result["square"] for result in results} == {2: 4, 5: 25, 7: 49, 9: 81}


class Here:
    """Takes the place of a Ray Dataset of numbers: the tasks run in this process."""

    def __init__(self, count: int, override_num_blocks: int) -> None:
        assert override_num_blocks == count
        self.count = count

    def map_batches(self, function: Callable[[Any], Any], **options: Any) -> Here:
        self.function, self.options = function, options
        return self

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        for number in range(self.count):
            (result,) = self.function({"id": np.array([number])})["result"]
            yield {"result": result}

    def stats(self) -> str:
        return str(getattr(self.options.get("compute"), "size", None))


def test_tasks_on_ray_yield_their_results_and_run_at_most_so_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.data, "range", Here)
    operators: list[str] = []
    results = list(run_on_ray(lambda number: {"square": number**2}, 3, workers=2, operators=operators))
    assert results == [{"square": 0}, {"square": 1}, {"square": 4}]
    assert list(run_on_ray(lambda number: {"number": number}, 1, operators=operators)) == [{"number": 0}]
    assert operators == ["2", "None"]
    assert list(run_on_ray(lambda number: {"number": number}, 0, operators=operators)) == []


@pytest.mark.parametrize(("raised", "caught"), [(SpecError, SpecError), (FileNotFoundError, OSError)])
def test_an_error_that_a_user_can_mend_keeps_its_kind(
    raised: type[Exception], caught: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> dict[str, Any]:
        raise raised("the log is gone")

    monkeypatch.setattr(ray.data, "range", Here)
    with pytest.raises(caught, match="the log is gone") as error:
        list(run_on_ray(fail, 1))
    assert type(error.value) is caught


@pytest.mark.ray
def test_an_error_of_ours_in_a_task_reaches_the_user_as_itself(tmp_path: Path, ray_cluster: None) -> None:
    with pytest.raises(SpecError, match="a file went away"):
        list(run_on_ray(raise_spec_error, 2))


def raise_spec_error(number: int) -> dict[str, Any]:
    raise SpecError("a file went away")
