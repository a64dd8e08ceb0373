"""Numbered tasks: finished ones are read from the journal, and an error of a task on Ray keeps its type."""

from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.ray
def test_an_error_of_ours_in_a_task_reaches_the_user_as_itself(tmp_path: Path, ray_cluster: None) -> None:
    with pytest.raises(SpecError, match="a file went away"):
        list(run_on_ray(raise_spec_error, 2))


def raise_spec_error(number: int) -> dict[str, Any]:
    raise SpecError("a file went away")
