"""Prepared dataset: reads the histories folder that `ray_jobs.prepare` writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clv.data.clock import DAY_US, Clock
from clv.data.histories import SCHEMA_VERSION, concat
from clv.data.spec.models import DatasetSpec

VECTORS = "items/vectors.parquet"


@dataclass(frozen=True)
class PreparedDataset:
    """Spec, manifest and shards of a histories folder; its methods read the tables.

    >>> prepared = PreparedDataset.open("histories")  # doctest: +SKIP
    >>> table = prepared.histories()  # doctest: +SKIP
    """

    folder: Path
    spec: DatasetSpec
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path | str) -> PreparedDataset:
        """Opens a folder. Raises ValueError where it holds no histories, or histories of another schema version."""
        folder = Path(folder).absolute()
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            version = manifest["schema_version"]
        except (FileNotFoundError, json.JSONDecodeError, KeyError) as error:
            raise ValueError(
                f"{folder} is not a histories folder ({error}); write one with ray_jobs.prepare"
            ) from error
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"{folder} has schema version {version}, this version of clv reads {SCHEMA_VERSION}; prepare it again"
            )
        # After the check: a spec of another version may have keys that this version refuses.
        return cls(folder, DatasetSpec.load(folder / "spec.yaml"), manifest)

    @property
    def clock(self) -> Clock:
        return self.spec.clock

    @property
    def shards(self) -> list[Path]:
        return [self.folder / part["file"] for part in self.manifest["shards"]]

    @property
    def data_through(self) -> int:
        """The end of the data in us UTC: local midnight after the last event."""
        last = self.clock.parse(self.manifest["last_time"])
        return int(self.clock.day_start(self.clock.local_day([last]) + 1)[0])

    def histories(self, num_shards: int | None = None) -> pa.Table:
        """Returns the histories of all customers, or of those in the first `num_shards` shards.

        A shard is a random share of the customers, because a hash of the id chooses it. Raises ValueError for a shard
        that is missing or damaged.
        """
        self.check_shards()
        return concat([pq.read_table(path) for path in self.shards[:num_shards]])

    def shards_within(self, num_tokens: int) -> int:
        """Returns the number of first shards that together hold about `num_tokens` tokens; at least 1."""
        sizes = np.cumsum([part["customers"] for part in self.manifest["shards"]])
        share = num_tokens / max(self.manifest["num_tokens"], 1)
        return max(int(np.searchsorted(sizes, share * sizes[-1], side="right")), 1) if len(sizes) else 0

    def check_shards(self) -> None:
        """Raises ValueError for a shard that is missing or damaged; reads footers only."""
        for path in self.shards:
            try:
                pq.read_metadata(path)
            except FileNotFoundError:
                raise ValueError(f"{path} is missing; restore it, or prepare the histories again") from None
            except (pa.ArrowInvalid, OSError) as error:
                cause = str(error).splitlines()[0]
                raise ValueError(f"{path} is damaged ({cause}); prepare the histories again") from error

    def items(self) -> tuple[pa.Table, pa.Table | None]:
        """Returns (items, text vectors or None).

        Items have the schema `clv.data.prepare.items.ITEMS`; vectors have the columns `text_key` and `vector`.
        """
        path = self.folder / VECTORS
        return pq.read_table(self.folder / "items" / "items.parquet"), pq.read_table(path) if path.is_file() else None

    def origin(self, text: str | None) -> int:
        """Returns the origin of a date or ISO time in us UTC; by default the end of the data.

        Raises ValueError for an origin before the first event.
        """
        if text is None:
            return self.data_through
        origin = self.clock.parse(text)
        first = self.clock.parse(self.manifest["first_time"])
        if origin <= first:
            raise ValueError(
                f"origin {text} lies before the log, which runs from {self.clock.format(first)} to "
                f"{self.clock.format(self.data_through - DAY_US)}; choose one inside it"
            )
        return origin
