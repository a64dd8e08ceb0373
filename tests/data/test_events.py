import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from clv.data.events import FIRST_FREE_TYPE, TYPES, stable_hash, type_code

# These stand in histories and bundles on disk: changing them breaks every one of them.
PINNED = {
    "": 1_760_245_841_805_064_774,
    "a": -4_496_393_130_729_816_112,
    "85123A": -8_693_857_817_441_911_756,
    "Ünïcode": -6_788_607_789_179_727_547,
}


def test_hashes_have_not_changed() -> None:
    assert stable_hash(list(PINNED)).tolist() == list(PINNED.values())


def test_hashes_are_equal_in_another_process() -> None:
    code = "from clv.data.events import stable_hash; print(stable_hash(['a', '85123A']).tolist())"
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert out.stdout.strip() == str([PINNED["a"], PINNED["85123A"]])


@pytest.mark.parametrize(
    "array",
    [
        ["a", None, "85123A", "a"],
        pa.array(["a", None, "85123A", "a"]),
        pa.chunked_array([["a", None], ["85123A", "a"]]),
        pa.array(["a", None, "85123A", "a"]).dictionary_encode(),
        pa.chunked_array([pa.array(["a", None]).dictionary_encode(), pa.array(["85123A", "a"]).dictionary_encode()]),
        pa.array(["a", None, "85123A", "a"], pa.large_string()),
        pa.array(["x", "a", None, "85123A", "a"]).slice(1),
    ],
    ids=["list", "array", "chunked", "dictionary", "chunked dictionary", "large", "sliced"],
)
def test_null_is_zero_in_every_kind_of_array(array: object) -> None:
    assert stable_hash(array).tolist() == [PINNED["a"], 0, PINNED["85123A"], PINNED["a"]]  # type: ignore[arg-type]


def test_only_null_is_zero_and_hashes_do_not_collide() -> None:
    words = [f"item {i}" for i in range(100_000)]
    hashes = stable_hash(words)
    assert hashes.dtype == np.int64
    assert len(np.unique(hashes)) == len(words)
    assert (hashes != 0).all()


def test_nothing_has_no_hashes() -> None:
    assert stable_hash([]).shape == (0,)
    assert stable_hash(pa.nulls(3, pa.string())).tolist() == [0, 0, 0]
    assert type_code([]).shape == (0,)


def test_known_types_have_the_codes_of_the_contract() -> None:
    names = ["purchase", "return", "view", "cart", "favourite", "click", "impression", "rating", "review", "message"]
    assert list(TYPES) == names
    codes = type_code([*names[::-1], "purchase"])
    assert codes.dtype == np.int16
    assert codes.tolist() == [*range(9, -1, -1), 0]


def test_free_types_get_stable_codes_above_the_known_ones() -> None:
    assert type_code(["bid", "coupon redeemed", "bid"]).tolist() == [19_384, 9_136, 19_384]
    codes = type_code([f"type {i}" for i in range(50)])
    assert codes.min() >= FIRST_FREE_TYPE
    assert codes.max() < FIRST_FREE_TYPE + 30_000
