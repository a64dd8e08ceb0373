"""Hashes of strings and files, against pandas and hashlib."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from clv.data.hashing import file_sha256, hash_strings


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.text(max_size=40) | st.text("0123456789", max_size=18), min_size=1, max_size=30))
def test_hashes_are_those_of_pandas_for_any_text(words: list[str]) -> None:
    expected = pd.util.hash_array(np.array(words, object), categorize=False)
    assert hash_strings(pa.array(words)).tolist() == expected.tolist()
    assert hash_strings(pa.array(["before", *words]).slice(1)).tolist() == expected.tolist()


def test_strings_of_several_chunks_have_the_hashes_of_pandas() -> None:
    words = [str(i) * (i % 5) for i in range(20_000)]
    expected = pd.util.hash_array(np.array(words, object), categorize=False)
    assert np.array_equal(hash_strings(pa.array(words)), expected)


def test_the_sha256_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()
