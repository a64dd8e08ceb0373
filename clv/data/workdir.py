"""The folder beside a result in which it is made: one writer at a time, found again after a kill, renamed when done."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOG = logging.getLogger(__name__)

JOURNAL = "journal"


@contextmanager
def staging_directory(out: Path, plan: dict[str, Any]) -> Iterator[Path]:
    """The folder in which `out` is made. What an interrupted run of the same `plan` left there is still in it.

    ValueError while another process works there. It is removed when the block raises ValueError (nothing of use can be
    in it), left for the next run after any other end but `publish`.
    """
    folder = out.parent / f".{out.name}.making"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is writing {out}; wait for it, or choose another folder") from None
        text = json.dumps(plan, sort_keys=True)
        described = folder / "plan.json"
        if described.is_file() and described.read_text(encoding="utf-8") == text:
            done = len(list((folder / JOURNAL).glob("*/[0-9]*.json")))
            LOG.info(f"continuing an interrupted run: {done} of its tasks are done")
        else:
            _empty(folder)
            described.write_text(text, encoding="utf-8")
        try:
            yield folder
        except ValueError:
            shutil.rmtree(folder)
            raise


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A name beside `path`, whose file takes the place of `path` at the end: nobody ever meets half a file.

    Every call has a name of its own: a task that Ray runs twice, on two nodes, must not write into one file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8")


def publish(folder: Path, out: Path) -> None:
    """Puts the finished folder in place of `out` by renaming; what killed tasks left half done goes."""
    for half in folder.rglob(".*"):
        half.unlink()
    for name in ("plan.json", "lock"):
        (folder / name).unlink()
    shutil.rmtree(folder / JOURNAL, ignore_errors=True)
    old = None
    if out.exists():
        old = out.parent / f".{out.name}.old-{os.getpid()}"
        os.replace(out, old)
    os.replace(folder, out)
    if old is not None:
        shutil.rmtree(old)


def link_tree(source: Path, target: Path, keep: Callable[[str], bool] = lambda name: True) -> None:
    """The files of a folder once more, without copying where the file system can: they must only ever be replaced."""
    for path in sorted(source.rglob("*")) if source.is_dir() else ():
        if path.is_file() and keep(path.name):
            link(path, target / path.relative_to(source))


def link(source: Path, target: Path) -> None:
    """One file once more; a target that is there stays: an interrupted run came this far, and may have changed it."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with atomic_write(target) as aside:
            shutil.copy2(source, aside)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
