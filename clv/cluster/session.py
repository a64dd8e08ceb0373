"""Connecting to Ray: start or join a cluster with the settings of the jobs, and raise the tasks' own errors."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MIB = 1 << 20


@contextmanager
def ray_session(
    *, num_cpus: int | None = None, object_store_mb: int | None = None, address: str | None = None
) -> Iterator[Any]:
    """The ray module, connected. Joins the cluster of `address` or RAY_ADDRESS, otherwise starts one on this machine.

    A session found running is used and left running. A local one has no dashboard, no token authentication (it listens
    to this machine only; RAY_AUTH_MODE overrides) and ends with the block. `object_store_mb` and `num_cpus` describe a
    local cluster and are ignored when one is joined.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    import ray

    mine = not ray.is_initialized()
    if mine:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING, "configure_logging": True}
        if address is not None:
            options["address"] = address
        else:
            # "local", or Ray would join whatever cluster runs on this machine and refuse the settings below.
            options |= {"address": "local", "include_dashboard": False, "num_cpus": num_cpus}
            if object_store_mb is not None:
                options["object_store_memory"] = object_store_mb * MIB
        ray.init(**options)
    quiet_data()
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


def quiet_data() -> None:
    """Ray Data without progress bars and statistics logs; the jobs log their own progress."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_auto_log_stats = False
    context.print_on_execution_start = False
    # Errors only: at WARNING it would announce at each run that its progress bars are off.
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def cluster_cpus() -> int:
    """CPUs of the connected cluster, at least 1."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def get(references: Any) -> Any:
    """`ray.get` that raises the tasks' own errors, without Ray's traceback in their text."""
    import ray

    with plain_errors():
        return ray.get(references)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raises the error of a failed task or actor instead of Ray's wrapper; RuntimeError for one that died."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        # A user's error may be wrapped more than once: a task of a task, an actor's constructor.
        cause: BaseException = error
        while (inner := getattr(cause, "cause", None)) is not None and inner is not cause:
            cause = inner
        if isinstance(cause, (ValueError, OSError)):
            raise cause from None
        raise RuntimeError(f"{type(cause).__name__}: {first_line(cause)}") from error
    except RayError as error:
        raise RuntimeError(f"{type(error).__name__}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
