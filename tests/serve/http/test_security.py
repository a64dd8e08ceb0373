"""Keys are compared as digests; a server without keys stays at home."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest

from clv.serve.http.security import (
    Key,
    KeyFile,
    Keys,
    check_exposure,
    host_name,
    is_loopback,
    keys_from_env,
)

KEY = "a-key-of-twenty-char"


def test_a_key_can_be_given_as_its_digest() -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    for text in (KEY, f"sha256:{digest}", f" sha256:{digest.upper()} ,", f"another-key-of-twenty,{KEY}"):
        keys = Keys.parse(text.split(","))
        assert keys.find(f"Bearer {KEY}") == Key(hashlib.sha256(KEY.encode()).digest())
        assert keys.find(f"bearer {KEY}")
        for wrong in (f"Bearer {KEY}x", f"Bearer sha256:{digest}", f"Basic {KEY}", KEY, "Bearer", "", None):
            assert keys.find(wrong) is None


def test_an_entry_may_name_scope_and_rate() -> None:
    digest = hashlib.sha256(KEY.encode()).digest()
    for entry, scope, rate in (
        (f"write={KEY}", "write", None),
        (f"admin@600=sha256:{digest.hex()}", "admin", 600),
        (f"@7={KEY}", "read", 7),
    ):
        assert Keys.parse([entry]).keys == (Key(digest, scope, rate),)
    odd = "root=a-key-with-an-equals-sign=="
    assert Keys.parse([odd]).keys == (Key(hashlib.sha256(odd.encode()).digest()),)
    assert [Key(digest, "write").covers(scope) for scope in ("read", "write", "admin")] == [True, True, False]
    assert KEY not in Key(digest).name
    assert digest.hex()[:8] != Key(digest).name


def test_every_key_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time tells neither whether a key is right nor which one it is."""
    compared: list[bytes] = []
    real = hmac.compare_digest

    def compare(given: bytes, known: bytes) -> bool:
        compared.append(known)
        return real(given, known)

    monkeypatch.setattr("clv.serve.http.security.hmac.compare_digest", compare)
    keys = Keys.parse([KEY, "another-key-of-twenty", "a-third-key-of-twenty"])
    for given in (KEY, "a-third-key-of-twenty", "wrong"):
        compared.clear()
        keys.find(f"Bearer {given}")
        assert compared == [key.digest for key in keys.keys]


def test_keys_of_a_file_change_without_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def entry(key: str) -> str:
        return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"

    clock, file = [0.0], tmp_path / "keys"

    def accepted(seconds: float, text: str | None = None) -> list[str]:
        clock[0] += seconds
        if text is not None:
            aside = tmp_path / "aside"
            aside.write_text(text)
            aside.replace(file)
        now = keys.current()
        return [key for key in ("old", "new") if now.find(f"Bearer {key}")]

    file.write_text(f"# of 2024\nwrite={entry('old')}   # the shop\n\n")
    keys = KeyFile(file, clock=lambda: clock[0])
    assert accepted(5) == ["old"]
    assert accepted(5, f"{entry('old')}\n{entry('new')}") == ["old", "new"]
    assert accepted(0.5, entry("new")) == ["old", "new"], "looked at once a second"
    assert accepted(0.6) == ["new"]
    for wrong in ("", "# nothing", "sha256:12", "plain-key-of-20-chars"):
        assert accepted(2, wrong) == ["new"]
    file.unlink()
    assert accepted(2) == ["new"]
    assert "previous API keys remain valid" in caplog.text
    assert "plain-key-of-20-chars" not in caplog.text
    assert accepted(2, entry("old")) == ["old"]


def test_a_file_of_keys_must_be_there_hold_one_and_hold_digests(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    with pytest.raises(FileNotFoundError, match="keys"):
        keys_from_env({"CLV_API_KEYS_FILE": str(file)})
    file.write_text("\n")
    with pytest.raises(ValueError, match="holds no key"):
        keys_from_env({"CLV_API_KEYS_FILE": str(file)})
    file.write_text(KEY)
    with pytest.raises(ValueError, match="entry 1 is not hashed: write sha256:HEX") as error:
        keys_from_env({"CLV_API_KEYS_FILE": str(file)})
    assert KEY not in str(error.value)
    with pytest.raises(ValueError, match="give one of them"):
        keys_from_env({"CLV_API_KEYS_FILE": str(file), "CLV_API_KEYS": KEY})


def test_neither_key_nor_digest_can_be_read_from_the_object() -> None:
    keys = Keys.parse([KEY])
    assert KEY not in repr(keys) + str(vars(keys))
    assert hashlib.sha256(KEY.encode()).hexdigest() not in repr(keys)


def test_any_bytes_in_the_header_are_a_wrong_key() -> None:
    assert Keys.parse([KEY]).find("Bearer \udcff\x00é") is None


@pytest.mark.parametrize("text", ["tiny-secret", "sha256:12", "sha256:" + "g" * 64])
def test_a_weak_or_mistyped_key_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match="CLV_API_KEYS: entry 1") as error:
        Keys.parse([text])
    assert text not in str(error.value)


def test_set_but_empty_is_an_error_and_unset_is_not() -> None:
    assert not keys_from_env({}).current()
    assert keys_from_env({"CLV_API_KEYS": f"write={KEY}"}).current().find(f"Bearer {KEY}")
    for lost in ("", " , "):
        with pytest.raises(ValueError, match="holds no key"):
            keys_from_env({"CLV_API_KEYS": lost})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_without_keys_loopback_may_be_served(host: str) -> None:
    assert is_loopback(host)
    check_exposure(Keys(), host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", None, "192.168.1.5", "shop.example", "127.0.0.1.nip.io"])
def test_without_keys_nothing_else_may_be_served(host: str | None) -> None:
    with pytest.raises(ValueError, match="refusing to serve"):
        check_exposure(Keys(), host)
    check_exposure(Keys.parse([KEY]), host)


@pytest.mark.parametrize(
    ("header", "host"),
    [("localhost:8000", "localhost"), ("localhost", "localhost"), ("[::1]:80", "[::1]"), ("::1", ":"), (None, "")],
)
def test_the_host_of_a_header_comes_without_its_port(header: str | None, host: str) -> None:
    assert host_name(header) == host
