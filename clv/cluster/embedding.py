"""Text embeddings of items on a cluster: a pool of actors with one text encoder each, over the distinct texts.

`embed` reads `items/items.parquet` of a histories folder and writes `items/vectors.parquet` beside it:

    text_key int64                        content hash of the text (`clv.data.events.stable_hash`), unique, unordered
    vector   fixed_size_list<float32, D>  of unit length
    metadata of the schema                `encoder` (its source), `encoder_sha256` (weights, tokenizer and pooling)

The file is its own cache: a text that it holds is not encoded again unless the encoder's hash differs. Items without
text have text_key 0 and no vector.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clv.data.workdir import atomic_write
from clv.models.backbones import text_encoder as texts

LOG = logging.getLogger(__name__)

TEXTS = pa.schema([pa.field("text_key", pa.int64()), pa.field("text", pa.string())])
CHUNK_TEXTS = 512  # texts in one call of an actor: some seconds of work on one core
READ_ROWS = 65_536
LOG_EVERY_S = 10.0

Keys = NDArray[np.int64]
Runner = Callable[[Iterable[pa.Table], str, str], Iterator[pa.Table]]


@dataclass(frozen=True)
class TextCounts:
    """Row accounting: distinct texts = cached + encoded + skipped (in fewer order lines than `min_count`)."""

    items: int
    without_text: int
    texts: int
    cached: int
    encoded: int
    skipped: int
    dropped: int  # vectors in the old file of texts that no item has any longer
    seconds: float


class TextEncoderActor:
    """Callable class for Ray Data: a block of TEXTS -> a block of (text_key, vector).

    Raises ValueError where the encoder on this node differs from that of the driver.
    """

    def __init__(self, source: str, sha256: str, threads: int = 1, device: str = "cpu") -> None:
        import torch

        # The pool already uses all cores: tokenizer threads would only compete with it.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        torch.set_num_threads(threads)
        self.encoder = texts.TextEncoder(source, device=device)
        if self.encoder.fingerprint != sha256:
            node = os.uname().nodename
            raise ValueError(
                f"encoder {source!r} on node {node} differs from the driver's; install the same everywhere"
            )

    def __call__(self, block: pa.Table) -> pa.Table:
        vectors = self.encoder(block["text"].to_pylist())
        flat = pa.array(vectors.ravel())
        return pa.table(
            {"text_key": block["text_key"], "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])}
        )


def encode_here(chunks: Iterable[pa.Table], source: str, sha256: str) -> Iterator[pa.Table]:
    """Blocks of (text_key, vector) by one encoder in this process."""
    yield from map(TextEncoderActor(source, sha256), chunks)


def encode_on_ray(
    chunks: Iterable[pa.Table], source: str, sha256: str, *, workers: int, threads: int = 1, gpus: float = 0
) -> Iterator[pa.Table]:
    """Blocks of (text_key, vector) in order, by `workers` actors of `threads` CPUs and `gpus` GPUs each."""
    import ray

    # The texts are in the object store, which spills to disk, and not in the driver's memory.
    blocks = [ray.put(chunk) for chunk in chunks]
    if not blocks:
        return
    device = "cuda" if gpus else "cpu"
    encoded = ray.data.from_arrow_refs(blocks).map_batches(
        TextEncoderActor,
        fn_constructor_args=(source, sha256, threads, device),
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(blocks))),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=threads,
        num_gpus=gpus,
    )
    # Equal runs must write equal files.
    encoded.context.execution_options.preserve_order = True
    yield from encoded.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def embed(histories: Path, encoder: str, *, run: Runner, min_count: int = 0) -> TextCounts:
    """Updates `items/vectors.parquet` of the folder `histories`; returns the row accounting.

    run: encodes chunks of TEXTS, `encode_here` or `encode_on_ray`. min_count: texts whose items are in fewer order
    lines of the histories are skipped; 0 encodes the whole item table. Raises ValueError for a folder without items, a
    damaged vectors file and an encoder that cannot be loaded.
    """
    begun = time.monotonic()
    items, vectors = check_target(histories)
    sha256 = texts.fingerprint(texts.checkpoint_folder(encoder))
    counted, without_text, present = _distinct(items)
    cached = cached_keys(vectors, sha256)
    if cached is None:
        LOG.info(f"{vectors} holds vectors of another encoder: everything is encoded again")
    old = np.zeros(0, np.int64) if cached is None else cached
    kept = np.intersect1d(old, present)
    wanted = present if min_count <= 0 else np.intersect1d(present, _frequent(histories, items, min_count))
    missing = np.setdiff1d(wanted, kept)
    LOG.info(f"{encoder}: {len(present):,} distinct texts, {len(kept):,} cached, {len(missing):,} to encode")
    dropped = len(old) - len(kept)
    if not len(kept) and not len(missing):
        vectors.unlink(missing_ok=True)
    elif len(missing) or dropped:
        blocks = run(_chunks(items, missing), encoder, sha256) if len(missing) else iter(())
        _write(vectors, kept, blocks, {"encoder": encoder, "encoder_sha256": sha256}, len(missing))
    counts = TextCounts(
        items=counted,
        without_text=without_text,
        texts=len(present),
        cached=len(kept),
        encoded=len(missing),
        skipped=len(present) - len(kept) - len(missing),
        dropped=dropped,
        seconds=time.monotonic() - begun,
    )
    LOG.info(f"items: {counted:,} read, {without_text:,} without text, {counts.texts:,} distinct texts")
    LOG.info(
        f"texts: {counts.texts:,} read = {counts.cached:,} cached + {counts.encoded:,} encoded + "
        f"{counts.skipped:,} skipped"
        + (f"; {dropped:,} vectors of texts without an item were dropped" if dropped else "")
    )
    LOG.info(f"{vectors} in {counts.seconds:.1f} s")
    return counts


def check_target(histories: Path) -> tuple[Path, Path]:
    """(items file, vectors file) of a histories folder; raises ValueError where it holds no items."""
    items = histories / "items" / "items.parquet"
    if not items.is_file():
        raise ValueError(f"{histories} holds no items/items.parquet: name a folder that ray_jobs.prepare wrote")
    return items, items.with_name("vectors.parquet")


def cached_keys(vectors: Path, sha256: str) -> Keys | None:
    """Text keys of the vectors file; None where another encoder wrote it. Raises ValueError for a damaged file."""
    if not vectors.exists():
        return np.zeros(0, np.int64)
    try:
        file = pq.ParquetFile(vectors)
        if (file.schema_arrow.metadata or {}).get(b"encoder_sha256") != sha256.encode():
            return None
        return np.asarray(file.read(columns=["text_key"])["text_key"].to_numpy())
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{vectors} cannot be read ({error}); delete it and run again") from error


def _distinct(items: Path) -> tuple[int, int, Keys]:
    """(rows, rows without text, sorted distinct text keys) of the items file, with one batch of rows in memory."""
    rows, without, keys = 0, 0, [np.zeros(0, np.int64)]
    for batch in pq.ParquetFile(items).iter_batches(READ_ROWS, columns=["text_key"]):
        found = batch["text_key"].to_numpy()
        rows += len(found)
        without += int((found == 0).sum())
        keys.append(np.unique(found))
    distinct = np.unique(np.concatenate(keys))
    return rows, without, distinct[distinct != 0]


def _frequent(histories: Path, items: Path, min_count: int) -> Keys:
    """Text keys of the items in at least `min_count` order lines (of any event type) of the histories."""
    keys, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for shard in sorted((histories / "shards").glob("*.parquet")):
        for batch in pq.ParquetFile(shard).iter_batches(READ_ROWS, columns=["items"]):
            found, times = np.unique(batch["items"].flatten().flatten().to_numpy(), return_counts=True)
            keys, inverse = np.unique(np.concatenate([keys, found]), return_inverse=True)
            counts = np.bincount(inverse, weights=np.concatenate([counts, times])).astype(np.int64)
    frequent, text_keys = keys[counts >= min_count], [np.zeros(0, np.int64)]
    for batch in pq.ParquetFile(items).iter_batches(READ_ROWS, columns=["item_key", "text_key"]):
        text_keys.append(batch["text_key"].to_numpy()[np.isin(batch["item_key"].to_numpy(), frequent)])
    return np.unique(np.concatenate(text_keys))


def _chunks(items: Path, missing: Keys) -> Iterator[pa.Table]:
    """TEXTS of the missing keys, each once, in tables of CHUNK_TEXTS rows."""
    pending = np.ones(len(missing), bool)
    remainder = TEXTS.empty_table()
    for batch in pq.ParquetFile(items).iter_batches(READ_ROWS, columns=["text_key", "text"]):
        keys, first = np.unique(batch["text_key"].to_numpy(), return_index=True)
        index = np.minimum(np.searchsorted(missing, keys), len(missing) - 1)
        new = (missing[index] == keys) & pending[index]
        pending[index[new]] = False
        rows = pa.Table.from_batches([batch.take(pa.array(np.sort(first[new])))]).select(TEXTS.names).cast(TEXTS)
        remainder = pa.concat_tables([remainder, rows])
        whole = len(remainder) - len(remainder) % CHUNK_TEXTS
        yield from (remainder.slice(start, CHUNK_TEXTS).combine_chunks() for start in range(0, whole, CHUNK_TEXTS))
        remainder = remainder.slice(whole)
    if len(remainder):
        yield remainder.combine_chunks()


def _write(target: Path, kept: Keys, blocks: Iterator[pa.Table], metadata: dict[str, str], total: int) -> None:
    """Writes the kept rows of the old file and then the new blocks, `total` rows, as one atomic write."""
    begun = logged = time.monotonic()
    encoded, writer = 0, None
    with atomic_write(target) as staged, ExitStack() as opened:
        for rows, fresh in _rows(target, kept, blocks):
            if writer is None:
                width = rows.schema.field("vector").type.list_size
                schema = pa.schema([("text_key", pa.int64()), ("vector", pa.list_(pa.float32(), width))])
                # Neither a dictionary nor a codec makes floats of full precision smaller.
                file = pq.ParquetWriter(
                    staged, schema.with_metadata(metadata), compression="none", use_dictionary=False
                )
                writer = opened.enter_context(file)
            writer.write_table(rows.cast(writer.schema))
            encoded += len(rows) if fresh else 0
            if fresh and time.monotonic() - logged > LOG_EVERY_S:
                logged = time.monotonic()
                LOG.info(f"{encoded:,} of {total:,} texts encoded, {logged - begun:.0f} s")
        if encoded != total:
            raise RuntimeError(f"the encoder received {total} texts and returned {encoded} vectors")


def _rows(target: Path, kept: Keys, blocks: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, bool]]:
    """(rows, False) of the old file, then (block, True) for every new block."""
    if len(kept):
        for batch in pq.ParquetFile(target).iter_batches(READ_ROWS // 8):
            rows: Any = pa.Table.from_batches([batch])
            yield rows.filter(pa.array(np.isin(rows["text_key"].to_numpy(), kept))), False
    for block in blocks:
        yield block, True
