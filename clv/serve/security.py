"""API keys and the rule that a server without keys stays on loopback."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

ENV = "CLV_API_KEYS"
MIN_KEY_LENGTH = 16


@dataclass(frozen=True)
class Keys:
    """SHA-256 digests of the accepted keys; the keys themselves are not kept. Empty: no key is asked for."""

    digests: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def parse(cls, text: str) -> Keys:
        """Keys of a comma-separated list; each is the key itself or `sha256:HEX` (`printf %s KEY | sha256sum`)."""
        return cls(tuple(_digest_of(entry.strip(), i) for i, entry in enumerate(text.split(",")) if entry.strip()))

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Keys:
        """Keys of CLV_API_KEYS; set but empty is an error, since it is more likely a lost secret than an intention."""
        text = env.get(ENV)
        if text is None:
            return cls()
        keys = cls.parse(text)
        if not keys:
            raise ValueError(f"{ENV} is set but holds no key: unset it (loopback only) or give keys")
        return keys

    def __bool__(self) -> bool:
        return bool(self.digests)

    def accept(self, authorization: str | None) -> bool:
        """Whether an Authorization header carries one of the keys; takes the same time for any wrong key."""
        if not self.digests:
            return True
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self.digests]
        return scheme.lower() == "bearer" and any(matches)


def _digest_of(entry: str, position: int) -> bytes:
    scheme, _, rest = entry.partition(":")
    if scheme == "sha256":
        try:
            digest = bytes.fromhex(rest)
        except ValueError:
            digest = b""
        if len(digest) != 32:
            raise ValueError(f"{ENV}: entry {position + 1} is not sha256: followed by 64 hex digits")
        return digest
    if len(entry) < MIN_KEY_LENGTH:
        raise ValueError(f"{ENV}: entry {position + 1} is shorter than {MIN_KEY_LENGTH} characters: use a longer key")
    return hashlib.sha256(entry.encode()).digest()


def is_loopback(host: str | None) -> bool:
    """Whether a bind address or the host of a URL can only be reached from this machine; unknown names cannot."""
    name = (host or "").strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_exposure(keys: Keys, host: str | None) -> None:
    """Raise ValueError when a server without keys would listen on anything but loopback."""
    if not keys and not is_loopback(host):
        raise ValueError(
            f"refusing to serve on {host!r} without API keys: "
            f"set {ENV}, or http_options.host to 127.0.0.1 in the Serve file"
        )


def host_of(header: str | None) -> str:
    """Host name of a Host header, without its port."""
    text = header or ""
    if text.startswith("["):
        return text.partition("]")[0] + "]"
    return text.rpartition(":")[0] if ":" in text else text
