"""Errors of Ray tasks: a user reads the task's own error, without Ray's wrapper."""

from __future__ import annotations

import pytest
from ray.exceptions import RayTaskError, WorkerCrashedError

from clv.cluster import session


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("task", "Traceback ...", cause)


@pytest.mark.parametrize("cause", [ValueError("no such column"), OSError("no such file")])
def test_the_error_of_a_task_is_raised_itself(cause: Exception) -> None:
    with pytest.raises(type(cause), match=f"^{cause}$"), session.plain_errors():
        raise task_error(task_error(cause))


def test_another_error_of_a_task_is_named_in_one_line() -> None:
    with pytest.raises(RuntimeError, match=r"^ZeroDivisionError: division by zero$"), session.plain_errors():
        raise task_error(ZeroDivisionError("division by zero\nmore text"))


def test_a_task_that_died_is_a_runtime_error() -> None:
    with pytest.raises(RuntimeError, match=r"^WorkerCrashedError: The worker died"), session.plain_errors():
        raise WorkerCrashedError
