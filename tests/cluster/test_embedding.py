"""Item vectors: each distinct text is encoded once, cached by content and encoder, equal with and without Ray."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clv.cluster import embedding
from clv.cluster.embedding import embed, encode_here, encode_on_ray
from clv.data import histories
from clv.data.clock import Clock
from clv.data.events import EVENTS, US, stable_hash
from clv.data.prepare import items
from clv.models.backbones.text_encoder import TextEncoder

WORDS = ["red", "blue", "mug", "jar", "glass", "paper", "small", "large"]


def save_encoder(folder: Path, seed: int) -> str:
    """A BERT of two thin layers with random weights, saved as transformers saves one."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(seed)
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    BertModel(
        BertConfig(
            vocab_size=5 + len(WORDS),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
        )
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("encoders") / "one", 1)


def write_items(folder: Path, texts: dict[str, str | None]) -> None:
    """items/items.parquet of items (id: text), in two row groups."""
    table = items.to_items_schema(
        pa.table(
            {
                "item_id": pa.array(list(texts), pa.string()),
                "text": pa.array(list(texts.values()), pa.string()),
                "category": pa.nulls(len(texts), pa.string()),
            }
        )
    )
    (folder / "items").mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "items" / "items.parquet", row_group_size=3)


SHOP = {"a": "red mug", "b": "blue jar", "c": "red mug", "d": None, "e": "small glass jar", "f": "blue jar"}


class Counting:
    """`encode_here` that records its texts."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, chunks: Iterable[pa.Table], source: str, sha256: str) -> Iterator[pa.Table]:
        def recorded() -> Iterator[pa.Table]:
            for chunk in chunks:
                self.texts += chunk["text"].to_pylist()
                yield chunk

        yield from encode_here(recorded(), source, sha256)


def embedded(folder: Path, encoder: str, **more: Any) -> tuple[embedding.TextCounts, list[str]]:
    runner = Counting()
    return embed(folder, encoder, **({"run": runner} | more)), sorted(runner.texts)


def vectors(folder: Path) -> dict[int, np.ndarray]:
    table = pq.read_table(folder / "items" / "vectors.parquet")
    keys = table["text_key"].to_pylist()
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, np.stack(table["vector"].to_numpy(zero_copy_only=False)), strict=True))


def check_vectors(folder: Path, encoder: str, texts: list[str]) -> None:
    """The file holds exactly the vectors of `texts`."""
    found, expected = vectors(folder), TextEncoder(encoder)(texts)
    assert sorted(found) == sorted(stable_hash(texts).tolist())
    for key, vector in zip(stable_hash(texts).tolist(), expected, strict=True):
        np.testing.assert_allclose(found[key], vector, atol=1e-6)


def test_each_distinct_text_is_encoded_once(tmp_path: Path, encoder: str) -> None:
    write_items(tmp_path, SHOP)
    accounting, given = embedded(tmp_path, encoder)
    assert given == ["blue jar", "red mug", "small glass jar"]
    check_vectors(tmp_path, encoder, given)
    assert (accounting.items, accounting.without_text, accounting.texts, accounting.encoded, accounting.cached) == (
        6,
        1,
        3,
        3,
        0,
    )


def test_the_file_has_the_documented_form(tmp_path: Path, encoder: str) -> None:
    write_items(tmp_path, SHOP)
    embedded(tmp_path, encoder)
    schema = pq.read_schema(tmp_path / "items" / "vectors.parquet")
    assert schema.names == ["text_key", "vector"]
    assert schema.field("text_key").type == pa.int64()
    assert schema.field("vector").type.list_size == 16
    assert schema.field("vector").type.value_type == pa.float32()
    assert schema.metadata[b"encoder"] == encoder.encode()
    assert schema.metadata[b"encoder_sha256"] == TextEncoder(encoder).fingerprint.encode()
    assert [path.name for path in sorted((tmp_path / "items").iterdir())] == ["items.parquet", "vectors.parquet"]


def test_a_second_run_encodes_only_new_texts_and_drops_texts_without_an_item(tmp_path: Path, encoder: str) -> None:
    write_items(tmp_path, SHOP)
    embedded(tmp_path, encoder)
    before = (tmp_path / "items" / "vectors.parquet").read_bytes()
    accounting, given = embedded(tmp_path, encoder)
    assert (given, accounting.cached, accounting.encoded) == ([], 3, 0)
    assert (tmp_path / "items" / "vectors.parquet").read_bytes() == before

    write_items(tmp_path, {"a": "red mug", "g": "large paper", "h": "blue jar"})
    accounting, given = embedded(tmp_path, encoder)
    assert given == ["large paper"]
    assert (accounting.texts, accounting.cached, accounting.encoded, accounting.skipped, accounting.dropped) == (
        3,
        2,
        1,
        0,
        1,
    )
    check_vectors(tmp_path, encoder, ["red mug", "large paper", "blue jar"])


def test_another_encoder_encodes_every_text_again(tmp_path: Path, encoder: str) -> None:
    write_items(tmp_path, SHOP)
    embedded(tmp_path, encoder)
    other = save_encoder(tmp_path / "other", 2)
    accounting, given = embedded(tmp_path, other)
    assert (len(given), accounting.cached) == (3, 0)
    check_vectors(tmp_path, other, given)
    same = save_encoder(tmp_path / "same", 2)
    assert embedded(tmp_path, same)[0].cached == 3


def test_rare_items_can_be_skipped(tmp_path: Path, encoder: str) -> None:
    write_items(tmp_path, SHOP)
    bought = ["a", "b", "b", "e", "c", "d", "e"]
    events = pa.table(
        {
            "event_id": [str(i) for i in range(len(bought))],
            "customer_id": ["x", "x", "y", "y", "y", "z", "z"],
            "event_time": pa.array(np.arange(len(bought)) * 10**12).cast(US),
            "known_at": pa.array(np.arange(len(bought)) * 10**12).cast(US),
            "event_type": ["purchase"] * len(bought),
            "order_id": pa.nulls(len(bought), pa.string()),
            "item_id": bought,
            "quantity": np.ones(len(bought)),
            "amount": np.ones(len(bought)),
            "amount_filled": np.zeros(len(bought), bool),
            "text": pa.nulls(len(bought), pa.string()),
            "channel": pa.nulls(len(bought), pa.string()),
        },
        schema=EVENTS,
    )
    (tmp_path / "shards").mkdir()
    for part, names in enumerate((["x"], ["y", "z"])):
        rows = events.filter(pa.array(np.isin(events["customer_id"].to_numpy(), names)))
        pq.write_table(histories.build(rows, Clock("UTC")), tmp_path / "shards" / f"part-{part}.parquet")
    accounting, given = embedded(tmp_path, encoder, min_count=2)
    assert given == ["blue jar", "small glass jar"]
    assert (accounting.texts, accounting.encoded, accounting.skipped) == (3, 2, 1)
    accounting, given = embedded(tmp_path, encoder)
    assert given == ["red mug"]
    assert (accounting.cached, accounting.encoded, accounting.skipped) == (2, 1, 0)


def test_many_chunks_over_many_row_groups_hold_every_text_once(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "CHUNK_TEXTS", 7)
    monkeypatch.setattr(embedding, "READ_ROWS", 10)
    texts = {f"i{n}": f"mug {n % 61} red" for n in range(200)}
    write_items(tmp_path, texts)
    accounting, given = embedded(tmp_path, encoder)
    assert given == sorted(set(texts.values()))
    assert accounting.encoded == 61
    write_items(tmp_path, texts | {"more": "glass"})
    assert embedded(tmp_path, encoder)[1] == ["glass"]
    assert len(vectors(tmp_path)) == 62


def test_a_run_that_fails_leaves_the_old_vectors(tmp_path: Path, encoder: str) -> None:
    write_items(tmp_path, SHOP)
    embedded(tmp_path, encoder)
    before = (tmp_path / "items" / "vectors.parquet").read_bytes()
    write_items(tmp_path, SHOP | {"g": "large paper"})

    def dies(chunks: Iterable[pa.Table], source: str, sha256: str) -> Iterator[pa.Table]:
        yield from encode_here(chunks, source, sha256)
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="the disk went away"):
        embed(tmp_path, encoder, run=dies)
    assert (tmp_path / "items" / "vectors.parquet").read_bytes() == before
    assert [path.name for path in sorted((tmp_path / "items").iterdir())] == ["items.parquet", "vectors.parquet"]


def test_an_encoder_that_returns_too_few_vectors_leaves_the_old_ones(tmp_path: Path, encoder: str) -> None:
    write_items(tmp_path, SHOP)
    embedded(tmp_path, encoder)
    before = (tmp_path / "items" / "vectors.parquet").read_bytes()
    write_items(tmp_path, SHOP | {"g": "large paper", "h": "glass"})

    def drops_one(chunks: Iterable[pa.Table], source: str, sha256: str) -> Iterator[pa.Table]:
        yield from (block.slice(1) for block in encode_here(chunks, source, sha256))

    with pytest.raises(RuntimeError, match="the encoder received 2 texts and returned 1 vectors"):
        embed(tmp_path, encoder, run=drops_one)
    assert (tmp_path / "items" / "vectors.parquet").read_bytes() == before


def test_items_without_any_text_leave_no_file(tmp_path: Path, encoder: str) -> None:
    write_items(tmp_path, SHOP)
    embedded(tmp_path, encoder)
    write_items(tmp_path, {"a": None})
    accounting, given = embedded(tmp_path, encoder)
    assert (given, accounting.texts, accounting.dropped) == ([], 0, 3)
    assert not (tmp_path / "items" / "vectors.parquet").exists()


def test_wrong_folders_and_damaged_files_are_named(tmp_path: Path, encoder: str) -> None:
    with pytest.raises(ValueError, match=r"holds no items/items\.parquet: name a folder that ray_jobs\.prepare wrote"):
        embedded(tmp_path, encoder)
    write_items(tmp_path, SHOP)
    (tmp_path / "items" / "vectors.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"vectors\.parquet cannot be read .* delete it and run again"):
        embedded(tmp_path, encoder)


@pytest.mark.slow
@pytest.mark.ray
def test_on_ray_two_encoders_write_what_one_in_this_process_writes(
    tmp_path: Path, encoder: str, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "CHUNK_TEXTS", 5)
    texts = {f"i{n}": f"{WORDS[n % 8]} {WORDS[n // 8 % 8]} mug" for n in range(30)}
    for name in ("here", "there"):
        write_items(tmp_path / name, texts)
    embedded(tmp_path / "here", encoder)
    accounting, _ = embedded(tmp_path / "there", encoder, run=partial(encode_on_ray, workers=2))
    assert accounting.encoded == 30
    here, there = (pq.read_table(tmp_path / name / "items" / "vectors.parquet") for name in ("here", "there"))
    assert here["text_key"].equals(there["text_key"])
    np.testing.assert_allclose(*(np.stack(t["vector"].to_numpy()) for t in (here, there)), atol=1e-6)
    assert embedded(tmp_path / "there", encoder)[0].cached == 30
