"""API keys and their scopes; a server without keys listens on loopback only."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

LOG = logging.getLogger(__name__)

ENV, ENV_FILE = "CLV_API_KEYS", "CLV_API_KEYS_FILE"
MIN_KEY_LENGTH = 16
SCOPES = ("read", "write", "admin")  # each includes the scopes before it
_ENTRY = re.compile(r"(?:(?P<scope>read|write|admin)?(?:@(?P<per_minute>[1-9][0-9]{0,8}))?=)?(?P<key>.+)")
RELOAD_S = 1.0  # a key removed from the file is accepted for at most so long


@dataclass(frozen=True)
class Key:
    """SHA-256 digest, scope and rate of an API key; `per_minute` None is the service's default."""

    digest: bytes = field(repr=False)
    scope: str = "read"
    per_minute: int | None = None

    @property
    def name(self) -> str:
        """Name of the key in logs and rate limits, from which neither key nor digest follows."""
        return hashlib.sha256(b"name" + self.digest).hexdigest()[:8]

    def covers(self, scope: str) -> bool:
        """Returns whether this key includes `scope`."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


@dataclass(frozen=True)
class Keys:
    """The accepted keys; without any, requests need no key."""

    keys: tuple[Key, ...] = ()

    @classmethod
    def parse(cls, entries: Iterable[str], *, source: str = ENV, plain: bool = True) -> Keys:
        """Parses entries `[SCOPE][@PER_MINUTE]=KEY`, or KEY alone with scope read.

        KEY may be `sha256:HEX` of the key (`printf %s KEY | sha256sum`), and must be where `plain` is false. Raises
        ValueError, which names the entry and never the key.
        """
        found = enumerate(entry.strip() for entry in entries)
        return cls(tuple(_parse_entry(entry, f"{source}: entry {i + 1}", plain) for i, entry in found if entry))

    def __bool__(self) -> bool:
        return bool(self.keys)

    def current(self) -> Keys:
        return self

    def find(self, authorization: str | None) -> Key | None:
        """Returns the key of an Authorization header; takes the same time for every wrong key."""
        scheme, _, given = (authorization or "").partition(" ")
        digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        matches = [hmac.compare_digest(digest, key.digest) for key in self.keys]
        found = next((key for key, match in zip(self.keys, matches, strict=True) if match), None)
        return found if scheme.lower() == "bearer" else None


class KeySource(Protocol):
    """Source of the keys, which may change while the server runs."""

    def current(self) -> Keys: ...


class KeyFile:
    """Keys of a file with one entry a line, digests only, and comments after #. Changes take effect within a second.

    A file that becomes unreadable or invalid is logged, and the previous keys remain valid.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._keys, self._stamp = self._read()
        self._checked_at = clock()

    def current(self) -> Keys:
        """Returns the keys that are accepted now."""
        if self._clock() - self._checked_at >= RELOAD_S:
            self._checked_at = self._clock()
            try:
                if self._stat() != self._stamp:
                    self._keys, self._stamp = self._read()
                    LOG.info("the file of API keys changed: %d keys are valid", len(self._keys.keys))
            except (OSError, ValueError) as error:
                LOG.error("the previous API keys remain valid: %s", error)
        return self._keys

    def _stat(self) -> tuple[int, int, int]:
        found = os.stat(self._path)
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> tuple[Keys, tuple[int, int, int]]:
        stamp = self._stat()
        lines = (line.partition("#")[0] for line in self._path.read_text(encoding="utf-8").splitlines())
        keys = Keys.parse(lines, source=str(self._path), plain=False)
        if not keys:
            raise ValueError(f"{self._path} holds no key")
        return keys, stamp


def keys_from_env(env: Mapping[str, str]) -> KeySource:
    """Returns the keys of the file CLV_API_KEYS_FILE, or of CLV_API_KEYS (separated by commas); none without either.

    Raises ValueError for an empty variable, which is more likely a lost secret than an intention, and for both.
    """
    text, file = env.get(ENV), env.get(ENV_FILE)
    if text is not None and file is not None:
        raise ValueError(f"both {ENV} and {ENV_FILE} are set: give one of them")
    if file is not None:
        return KeyFile(Path(file))
    if text is None:
        return Keys()
    keys = Keys.parse(text.split(","))
    if not keys:
        raise ValueError(f"{ENV} is set but holds no key: unset it (loopback only) or give keys")
    return keys


def _parse_entry(entry: str, where: str, plain: bool) -> Key:
    found = _ENTRY.fullmatch(entry)
    assert found is not None
    per_minute = int(found["per_minute"]) if found["per_minute"] else None
    return Key(_parse_digest(found["key"], where, plain), found["scope"] or "read", per_minute)


def _parse_digest(key: str, where: str, plain: bool) -> bytes:
    kind, _, rest = key.partition(":")
    if kind == "sha256":
        try:
            digest = bytes.fromhex(rest)
        except ValueError:
            digest = b""
        if len(digest) != 32:
            raise ValueError(f"{where} is not sha256: followed by 64 hex digits")
        return digest
    if not plain:
        raise ValueError(f"{where} is not hashed: write sha256:HEX, from printf %s KEY | sha256sum")
    if len(key) < MIN_KEY_LENGTH:
        raise ValueError(f"{where} is shorter than {MIN_KEY_LENGTH} characters: use a longer key")
    return hashlib.sha256(key.encode()).digest()


def is_loopback(host: str | None) -> bool:
    """Returns whether a bind address or the host of a URL is reachable from this machine only."""
    name = (host or "").strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_exposure(keys: Keys, host: str | None) -> None:
    """Raises ValueError for a server without keys that would listen on another address than loopback."""
    if not keys and not is_loopback(host):
        raise ValueError(
            f"refusing to serve on {host!r} without API keys: "
            f"set {ENV} or {ENV_FILE}, or http_options.host to 127.0.0.1 in the Serve file"
        )


def host_name(header: str | None) -> str:
    """Returns the host name of a Host header, without its port."""
    text = header or ""
    if text.startswith("["):
        return text.partition("]")[0] + "]"
    return text.rpartition(":")[0] if ":" in text else text
