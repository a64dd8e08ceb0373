"""Keys are compared as digests; a server without keys stays at home."""

from __future__ import annotations

import hashlib

import pytest

from clv.serve.security import Keys, check_exposure, host_of, is_loopback

KEY = "a-key-of-twenty-char"


def test_a_key_can_be_given_as_its_digest() -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    for text in (KEY, f"sha256:{digest}", f" sha256:{digest.upper()} ,", f"another-key-of-twenty,{KEY}"):
        keys = Keys.parse(text)
        assert keys.accept(f"Bearer {KEY}")
        assert keys.accept(f"bearer {KEY}")
        assert not keys.accept(f"Bearer {KEY}x")
        assert not keys.accept(f"Bearer sha256:{digest}")
        assert not keys.accept(KEY)
        assert not keys.accept(None)


def test_neither_key_nor_digest_can_be_read_from_the_object() -> None:
    keys = Keys.parse(KEY)
    assert KEY not in repr(keys) + str(vars(keys))
    assert hashlib.sha256(KEY.encode()).hexdigest() not in repr(keys)


def test_any_bytes_in_the_header_are_a_wrong_key() -> None:
    assert not Keys.parse(KEY).accept("Bearer \udcff\x00é")


@pytest.mark.parametrize("text", ["tiny-secret", "sha256:12", "sha256:" + "g" * 64])
def test_a_weak_or_mistyped_key_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match="CLV_API_KEYS: entry 1") as error:
        Keys.parse(text)
    assert text not in str(error.value)


def test_set_but_empty_is_an_error_and_unset_is_not() -> None:
    assert not Keys.from_env({})
    assert Keys.from_env({"CLV_API_KEYS": KEY}).accept(f"Bearer {KEY}")
    for lost in ("", " , "):
        with pytest.raises(ValueError, match="holds no key"):
            Keys.from_env({"CLV_API_KEYS": lost})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_without_keys_loopback_may_be_served(host: str) -> None:
    assert is_loopback(host)
    check_exposure(Keys(), host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", None, "192.168.1.5", "shop.example", "127.0.0.1.nip.io"])
def test_without_keys_nothing_else_may_be_served(host: str | None) -> None:
    with pytest.raises(ValueError, match="refusing to serve"):
        check_exposure(Keys(), host)
    check_exposure(Keys.parse(KEY), host)


@pytest.mark.parametrize(
    ("header", "host"),
    [("localhost:8000", "localhost"), ("localhost", "localhost"), ("[::1]:80", "[::1]"), ("::1", ":"), (None, "")],
)
def test_the_host_of_a_header_comes_without_its_port(header: str | None, host: str) -> None:
    assert host_of(header) == host
