"""Workers on Ray Train: the error that a failed group reports, and a full disk."""

from __future__ import annotations

import errno
from queue import SimpleQueue

import pytest

from clv.cluster import workers


class GroupFailed(Exception):
    """As Ray Train raises it: the texts of the workers' errors by rank."""

    def __init__(self, failures: dict[int, str]) -> None:
        super().__init__("the group failed")
        self.worker_failures = failures


def test_the_first_failed_worker_gives_the_reason() -> None:
    own = 'Traceback (most recent call last):\n  File "loop.py", line 1\nValueError: batch_size 3 is odd\n\n'
    assert workers._reason(GroupFailed({2: "lost", 1: own})) == "worker rank 1: ValueError: batch_size 3 is odd"
    assert workers._reason(GroupFailed({0: "The actor died.\nMore text"})) == "worker rank 0: The actor died."


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("CUDA out of memory"), False),
    ],
)
def test_a_full_disk_alone_stops_the_retries(error: Exception, full: bool) -> None:
    stop: SimpleQueue[str] = SimpleQueue()
    with pytest.raises(type(error), match=r"."), workers._stopping_when_full(stop, "/storage"):
        raise error
    assert stop.empty() != full
    assert workers.failed_permanently({"stop": stop}) == full
    if full:
        assert stop.get().startswith("no space left for checkpoints, in /storage or ")
