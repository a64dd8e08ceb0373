"""Atomic writes and staging directories: a file or folder is written beside its target, then renamed.

No reader sees half a file or half a folder, one process at a time writes a folder, and the next run of the same plan
continues what a killed run left in the staging directory.
"""

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
_PLAN, _LOCK = "plan.json", "lock"


@contextmanager
def staging_directory(out: Path, plan: dict[str, Any]) -> Iterator[Path]:
    """Yields a folder beside `out` and moves it to `out` at the end; it holds what an interrupted run of `plan` left.

    The folder is deleted when the block raises ValueError, because wrong input left nothing of use in it, and is kept
    for the next run after any other error. Raises ValueError while another process writes `out`.
    """
    folder = out.parent / f".{out.name}.making"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is writing {out}; wait for it, or choose another folder") from None
        text = json.dumps(plan, sort_keys=True)
        described = folder / _PLAN
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
        _drop_helpers(folder)
        replace_folder(folder, out)


@contextmanager
def temporary_folder(out: Path) -> Iterator[Path]:
    """Yields a new folder beside `out` and moves it to `out` at the end; after an error it deletes the new folder."""
    staging = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    staging.mkdir(parents=True)
    try:
        yield staging
        replace_folder(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a file name beside `path`; the file written there replaces `path` at the end of the block.

    Every call has its own name: Ray may run one task twice, on two nodes, and the two must not write one file. After an
    error `path` is unchanged and the new file is deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield staged
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes the text, in UTF-8, as one atomic write."""
    with atomic_write(path) as staged:
        staged.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, **options: Any) -> None:
    """Writes the value as indented JSON with a final line break, as one atomic write; `options` are json.dumps's."""
    write_text(path, json.dumps(value, indent=1, **options) + "\n")


def check_output(out: Path, content: str, *markers: str) -> None:
    """Raises ValueError where `out` is neither missing nor empty nor a folder of our own, which a job may replace.

    A folder of our own holds a match for every glob pattern of `markers`. `content` names what such a folder is in the
    message: "a bundle".
    """
    if is_occupied(out) and not all(any(out.glob(marker)) for marker in markers):
        raise ValueError(f"{out} exists and is not {content}; choose another --out")


def is_occupied(out: Path) -> bool:
    """Whether `out` is a file, or a folder that is not empty."""
    return out.exists() and (not out.is_dir() or any(out.iterdir()))


def replace_folder(folder: Path, out: Path) -> None:
    """Renames the finished `folder` to `out`, then deletes the old `out`; puts it back when the rename fails."""
    if not out.exists():
        os.replace(folder, out)
        return
    old = out.parent / f".{out.name}.old-{os.getpid()}"
    os.replace(out, old)
    try:
        os.replace(folder, out)
    except BaseException:
        os.replace(old, out)
        raise
    shutil.rmtree(old)


def link_tree(source: Path, target: Path, keep: Callable[[str], bool] = lambda name: True) -> None:
    """Links all files of a folder into `target`; both folders may replace their files, but must not change them."""
    for path in sorted(source.rglob("*")) if source.is_dir() else ():
        if path.is_file() and keep(path.name):
            link(path, target / path.relative_to(source))


def link(source: Path, target: Path) -> None:
    """Hard-links a file, or copies it where the file system has no links.

    An existing target stays: an interrupted run has linked it, and may have replaced it since.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with atomic_write(target) as staged:
            shutil.copy2(source, staged)


def _drop_helpers(folder: Path) -> None:
    """Deletes the plan, the lock, the journal, and the files that killed tasks left half written."""
    for unfinished in folder.rglob(".*"):
        unfinished.unlink()
    for name in (_PLAN, _LOCK):
        (folder / name).unlink()
    shutil.rmtree(folder / JOURNAL, ignore_errors=True)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != _LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
