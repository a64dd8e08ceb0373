"""Registry of bundles: published versions under one root, and a pointer to the version in production.

ROOT/versions/VERSION/    a published bundle, never changed
ROOT/production.json      the versions promoted so far, the last one in production; replaced in one step
ROOT/candidate.json       the candidate version of a rollout, during its trial
ROOT/log.jsonl            every publication, promotion, refusal, rollback and trial, with its reason
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from clv import bundle as bundles
from clv.data.clock import to_datetime
from clv.data.workdir import atomic_write, temporary_folder
from clv.evaluate.bootstrap import bootstrap, interval
from clv.forecast.distributions import Prediction

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
DRAWS = 1_000  # of the paired bootstrap


class RegistryError(ValueError):
    """A version is missing, or may not be promoted. (A damaged version raises BundleError.)"""


@dataclass(frozen=True)
class BundleComparison:
    """Comparison of two bundles on the same held-out customers: candidate minus current, with 95 % intervals.

    Ranking is measured by the normalised Gini (higher is better), the total by |log(predicted / actual)| (lower is
    better).
    """

    candidate: str
    current: str
    dataset: str
    origin: str
    horizon_days: int
    customers: int
    ngini_difference: float
    ngini_low: float
    ngini_high: float
    total_ratio_difference: float
    total_ratio_low: float
    total_ratio_high: float

    @property
    def worse(self) -> tuple[str, ...]:
        """Measures on which the candidate is significantly worse: "ranking", "total", both or none."""
        found = (("ranking", self.ngini_high < 0), ("total", self.total_ratio_low > 0))
        return tuple(name for name, is_worse in found if is_worse)


def compare(
    actual: pd.DataFrame,
    scores: Mapping[str, pd.DataFrame],
    *,
    candidate: str,
    current: str,
    dataset: str,
    origin: str,
    horizon_days: int,
    seed: int = 0,
) -> BundleComparison:
    """Compare two bundles by a paired bootstrap over the customers of `actual`.

    `actual` holds customer_id and value (shop currency, over the horizon); `scores[version]` holds customer_id and
    value_mean of that bundle at `origin` (ISO time, UTC) and `horizon_days`. Raises ValueError unless both score
    exactly the customers of `actual`, each once.
    """
    y = actual.set_index("customer_id")["value"].sort_index()
    if y.index.has_duplicates or not len(y):
        raise ValueError("actual must hold at least one customer, and each once")
    predictions = {}
    for version in (candidate, current):
        values = scores[version].set_index("customer_id")["value_mean"]
        if values.index.has_duplicates or set(values.index) != set(y.index):
            raise ValueError(f"scores of {version} must hold each of the {len(y)} customers of actual once")
        predictions[version] = Prediction(value=values.reindex(y.index).to_numpy(float))
    found = bootstrap(y.to_numpy(float), y.to_numpy(float) > 0, predictions, DRAWS, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = {version: np.abs(np.log(found[version]["bias"])) for version in predictions}
    rank = interval(found[candidate]["ngini"] - found[current]["ngini"])
    off = interval(total[candidate] - total[current])
    return BundleComparison(
        candidate, current, dataset, origin, horizon_days, len(y),
        rank.estimate, rank.low, rank.high, off.estimate, off.low, off.high,
    )  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A version on trial with a share of the requests: it answers them (canary), or computes them beside the version in
    production, for comparison (shadow)."""

    version: str
    share: float
    shadow: bool

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share {self.share} of a trial must be above 0 and at most 1")


def read_cut(folder: Path) -> datetime:
    """End of a bundle's training data; raises BundleError unless every file has the hash in the manifest."""
    bundles.verify(folder)
    return to_datetime(json.loads((folder / "config.json").read_text(encoding="utf-8"))["cut_us"])


class Registry:
    """The registry under `root`. Readers need no lock; a file lock serialises writers.

    Example::

        registry = Registry(Path("registry"))
        version = registry.publish(Path("out/bundle"))
        registry.promote(version, reason="first version")
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._pointer = root / "production.json"
        self._candidate = root / "candidate.json"

    def path(self, version: str) -> Path:
        """Folder of a published version; RegistryError for an unknown one."""
        if not _VERSION.fullmatch(version):
            raise RegistryError(f"{version!r} is not a version: letters, digits and . _ + - only")
        folder = self.root / "versions" / version
        if not folder.is_dir():
            known = ", ".join(self.versions()) or "none"
            raise RegistryError(f"version {version!r} is not in {self.root}; published are: {known}")
        return folder

    def versions(self) -> list[str]:
        """Published versions, oldest first."""
        folders = [f for f in (self.root / "versions").glob("*") if f.is_dir() and not f.name.startswith(".")]
        return [f.name for f in sorted(folders, key=lambda f: (f.stat().st_mtime_ns, f.name))]

    def current(self) -> str | None:
        """The version in production; None before the first promotion."""
        stack = self._stack()
        return stack[-1] if stack else None

    def production(self) -> Path:
        """Folder of the bundle in production; RegistryError before the first promotion."""
        version = self.current()
        if version is None:
            raise RegistryError(f"nothing is in production in {self.root}: promote a version first")
        return self.path(version)

    def candidate(self) -> Candidate | None:
        """The candidate on trial; None without a trial."""
        try:
            return Candidate(**json.loads(self._candidate.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def start_candidate(self, candidate: Candidate) -> None:
        """Start the trial of a published version, in place of a current trial."""
        bundles.verify(self.path(candidate.version))
        with self._lock():
            self._replace(self._candidate, asdict(candidate))
            self._log("start candidate", **asdict(candidate))

    def end_candidate(self, *, reason: str | None = None) -> None:
        """End the trial, if there is one: the version in production answers all requests again."""
        with self._lock():
            if candidate := self.candidate():
                self._candidate.unlink()
                self._log("end candidate", version=candidate.version, reason=reason)

    def publish(self, bundle: Path) -> str:
        """Verify and copy a bundle; returns its version. Publishing the same bundle again changes nothing.

        Raises BundleError for a damaged bundle, RegistryError for another bundle of a published version.
        """
        version = str(bundles.verify(bundle)["version"])
        target = self.root / "versions" / version
        if not _VERSION.fullmatch(version):
            raise RegistryError(f"{version!r} is not a version: letters, digits and . _ + - only")
        with self._lock():
            if target.exists():
                if (target / "manifest.json").read_bytes() == (bundle / "manifest.json").read_bytes():
                    return version
                raise RegistryError(
                    f"version {version!r} is published with other content: give the new bundle another version"
                )
            with temporary_folder(target) as staging:
                shutil.copytree(bundle, staging, dirs_exist_ok=True)
                read_cut(staging)
                os.utime(staging)
            self._log("publish", version=version)
        return version

    def promote(
        self,
        version: str,
        *,
        comparison: BundleComparison | None = None,
        force: bool = False,
        reason: str | None = None,
    ) -> None:
        """Put `version` into production.

        Raises RegistryError where `comparison` shows that it is significantly worse than the version in production, or
        where one of the two was trained on data after the origin of the comparison; `force` with a `reason` overrides
        both. A comparison of other versions is always refused. Without a comparison a reason is required.
        """
        if force and not (reason and reason.strip()):
            raise RegistryError("a forced promotion needs a reason, which the log keeps")
        cut = read_cut(self.path(version))
        with self._lock():
            stack = self._stack()
            current = stack[-1] if stack else None
            if current == version:
                return
            objection = self._objection(version, cut, current, comparison, reason)
            facts = {
                "version": version,
                "previous": current,
                "reason": reason,
                "forced": bool(force and objection),
                "objection": objection,
                "comparison": asdict(comparison) if comparison else None,
            }
            if objection and not force:
                self._log("refuse", **facts)
                raise RegistryError(
                    f"{version} is not promoted: {objection}. Force it with a reason to promote it nevertheless"
                )
            self._point([*stack, version])
            self._log("promote", **facts)

    def rollback(self, *, reason: str | None = None) -> str:
        """Put the version promoted before back into production and return it; RegistryError when there is none."""
        with self._lock():
            stack = self._stack()
            if len(stack) < 2:
                raise RegistryError(f"there is no earlier version to roll back to in {self.root}")
            bundles.verify(self.path(stack[-2]))
            self._point(stack[:-1])
            self._log("rollback", version=stack[-2], previous=stack[-1], reason=reason)
        return stack[-2]

    def log(self) -> list[dict[str, Any]]:
        """The entries of the log, oldest first."""
        path = self.root / "log.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def _objection(
        self, version: str, cut: datetime, current: str | None, comparison: BundleComparison | None, reason: str | None
    ) -> str | None:
        if current is None:
            return None
        if comparison is None:
            return None if reason else f"it needs a comparison with {current}, or a reason for the lack of one"
        if (comparison.candidate, comparison.current) != (version, current):
            raise RegistryError(
                f"the comparison is of {comparison.candidate} with {comparison.current}, not of {version} "
                f"with {current}: compare again"
            )
        origin = datetime.fromisoformat(comparison.origin)
        origin = origin.replace(tzinfo=origin.tzinfo or UTC)  # a time without an offset is UTC
        for name, end in ((version, cut), (current, read_cut(self.path(current)))):
            if end > origin:
                return f"{name} was trained on data up to {end.isoformat()}, after the origin {comparison.origin}"
        if comparison.worse:
            c = comparison
            return (
                f"it is significantly worse than {current} in {' and '.join(c.worse)} "
                f"(nGini {c.ngini_difference:+.4f} [{c.ngini_low:+.4f}, {c.ngini_high:+.4f}], "
                f"|log(predicted / actual)| {c.total_ratio_difference:+.4f} "
                f"[{c.total_ratio_low:+.4f}, {c.total_ratio_high:+.4f}])"
            )
        return None

    def _stack(self) -> list[str]:
        try:
            found = json.loads(self._pointer.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        return [str(version) for version in found["promoted"]]

    def _point(self, stack: list[str]) -> None:
        self._replace(self._pointer, {"production": stack[-1], "promoted": stack})

    def _replace(self, path: Path, content: dict[str, Any]) -> None:
        with atomic_write(path) as staged, staged.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(self.root, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _log(self, act: str, **facts: Any) -> None:
        line = json.dumps({"at": datetime.now(UTC).isoformat(timespec="seconds"), "act": act, **facts})
        with (self.root / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    @contextmanager
    def _lock(self) -> Iterator[None]:
        (self.root / "versions").mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
