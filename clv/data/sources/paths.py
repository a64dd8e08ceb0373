"""Paths of source files: globs on local disks, in buckets and in installed packages, and the filesystem of a path."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
from pathlib import Path

from pyarrow import fs

from clv.data.spec.models import SpecError

_REMOTE = ("s3://", "gs://", "gcs://")


def expand(path: str, key: str, place: str) -> list[str]:
    """Returns the sorted files of a source path.

    Raises SpecError for an unset ${VAR}, a package that is not installed, or a glob without a match.
    """
    filled = fill_variables(path, key, place)
    if filled.startswith("pkg://"):
        filled = _in_package(filled.removeprefix("pkg://"), key, place)
    found = _glob_remote(filled) if filled.startswith(_REMOTE) else _glob_local(filled)
    if not found:
        seen = "" if filled.startswith(_REMOTE) or Path(filled).is_absolute() else f" in {Path.cwd()}"
        raise SpecError(f"{place}: {key}: no file matches {filled}{seen}; correct the path")
    return found


def fill_variables(text: str, key: str, place: str) -> str:
    """Returns the text with every ${VAR} replaced from the environment. Raises SpecError for one that is not set."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if not os.environ.get(name):
            raise SpecError(
                f"{place}: {key}: the environment variable {name} is not set; `export {name}=...` to fill {text}"
            )
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", value, text)


def _in_package(inside: str, key: str, place: str) -> str:
    module, _, file = inside.partition("/")
    found = importlib.util.find_spec(module) if "." not in module else None
    if found is None or not found.submodule_search_locations:
        raise SpecError(f"{place}: {key}: the package {module!r} is not installed; `pip install` it, or give a path")
    return str(Path(found.submodule_search_locations[0]) / file)


def _glob_local(pattern: str) -> list[str]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        inside = (file for file in path.rglob("*") if file.is_file())
        return sorted(str(file) for file in inside if _is_data(str(file.relative_to(path))))
    return sorted(file for file in glob.glob(str(path), recursive=True) if os.path.isfile(file))


def _glob_remote(pattern: str) -> list[str]:
    scheme = pattern.split("://")[0] + "://"
    fixed = re.split(r"[*?\[]", pattern)[0]
    filesystem, base = open_filesystem(fixed if fixed == pattern else fixed.rsplit("/", 1)[0])
    base = base.rstrip("/")
    if filesystem.get_file_info(base).type == fs.FileType.File:
        return [pattern]
    found = filesystem.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
    files = [file.path for file in found if file.type == fs.FileType.File]
    if fixed == pattern:
        return sorted(scheme + file for file in files if _is_data(file.removeprefix(base)))
    # As in a local glob: ** goes through folders, * and ? stay within one.
    steps = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]*\])", pattern.removeprefix(scheme))
    shape = re.compile("".join(steps.get(part, part if part.startswith("[") else re.escape(part)) for part in parts))
    return sorted(scheme + file for file in files if shape.fullmatch(file))


def _is_data(inside: str) -> bool:
    """Returns whether a file holds data; Hive and Spark write others beside them, such as _SUCCESS and .crc."""
    return not any(part.startswith((".", "_")) for part in inside.strip("/").split("/"))


def open_filesystem(path: str) -> tuple[fs.FileSystem, str]:
    """Returns the filesystem of a local path or an s3:// or gs:// address, and the path in it."""
    if path.startswith(_REMOTE):
        scheme, _, inside = path.partition("://")
        # Only the bucket goes through a URI: the names of objects may hold what a URI may not.
        filesystem, _ = fs.FileSystem.from_uri(f"{scheme}://{inside.split('/')[0]}")
        return filesystem, inside
    return fs.LocalFileSystem(), path


def read_head(path: str, num_bytes: int = 1 << 18) -> bytes:
    """Returns the first bytes of a file, decompressed where its name ends like that of a compressed one."""
    filesystem, inside = open_filesystem(path)
    with filesystem.open_input_stream(inside) as stream:
        return bytes(stream.read(num_bytes))
