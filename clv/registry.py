"""Bundles by version under one root, and one pointer to the version in production.

ROOT/versions/VERSION/    a published bundle, never changed
ROOT/production.json      the versions promoted so far, the last one in production; replaced in one step
ROOT/trial.json           the version tried beside it, while a rollout tries one
ROOT/log.jsonl            every promotion, refusal and rollback, with its reason
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
from uuid import uuid4

import numpy as np
import pandas as pd

from clv import bundle as bundles
from clv.evaluate.bootstrap import bootstrap, interval
from clv.forecast.distributions import Prediction

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
DRAWS = 1_000


class RegistryError(ValueError):
    """A version that is missing or not allowed into production. (A damaged one is a BundleError.)"""


@dataclass(frozen=True)
class BundleComparison:
    """Two bundles on the same held-out customers. Differences are candidate minus current, with 95 % bounds.

    Ranking is judged by the normalised Gini (higher is better), level by |log bias| (lower is better).
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
        """What the candidate does significantly worse: "ranking", "level", both or nothing."""
        found = (("ranking", self.ngini_high < 0), ("level", self.total_ratio_low > 0))
        return tuple(name for name, is_worse in found if is_worse)


def compare(
    realised: pd.DataFrame,
    scores: Mapping[str, pd.DataFrame],
    *,
    candidate: str,
    current: str,
    dataset: str,
    origin: str,
    horizon_days: int,
    seed: int = 0,
) -> BundleComparison:
    """Paired bootstrap over the customers of `realised` (customer_id, value in shop currency over the horizon).

    `scores[version]` holds customer_id and value_mean of that bundle at `origin` (ISO time, UTC) and `horizon_days`;
    ValueError unless both score exactly the customers of `realised`, each once.
    """
    y = realised.set_index("customer_id")["value"].sort_index()
    if y.index.has_duplicates or not len(y):
        raise ValueError("realised must hold every customer once, and at least one")
    predictions = {}
    for version in (candidate, current):
        values = scores[version].set_index("customer_id")["value_mean"]
        if values.index.has_duplicates or set(values.index) != set(y.index):
            raise ValueError(f"scores of {version} are not of the {len(y)} customers of realised, each once")
        predictions[version] = Prediction(value=values.reindex(y.index).to_numpy(float))
    found = bootstrap(y.to_numpy(float), y.to_numpy(float) > 0, predictions, DRAWS, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        level = {version: np.abs(np.log(found[version]["bias"])) for version in predictions}
    rank = interval(found[candidate]["ngini"] - found[current]["ngini"])
    off = interval(level[candidate] - level[current])
    return BundleComparison(
        candidate, current, dataset, origin, horizon_days, len(y),
        rank.estimate, rank.low, rank.high, off.estimate, off.low, off.high,
    )  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A version tried beside the one in production on a share of the requests: it answers them (canary), or only
    computes them too, to be compared (shadow)."""

    version: str
    share: float
    shadow: bool

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share {self.share} of a trial must lie above 0 and at most at 1")


@dataclass(frozen=True)
class BundleInfo:
    """What the registry needs to know of a bundle: its version and the end of its training data."""

    version: str
    cut: datetime


def inspect(folder: Path) -> BundleInfo:
    """Version and cut of a bundle whose every file has the hash it was written with; BundleError otherwise."""
    version = str(bundles.verify(folder)["version"])
    cut_us = json.loads((folder / "config.json").read_text(encoding="utf-8"))["cut_us"]
    return BundleInfo(version, datetime.fromtimestamp(cut_us / 1e6, UTC))


def _instant(text: str) -> datetime:
    """An ISO time; without an offset it is taken as UTC."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


class Registry:
    """All acts on one root. Readers need no lock; writers take turns."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._pointer = root / "production.json"
        self._trial = root / "trial.json"

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

    def trial(self) -> Candidate | None:
        """What is tried beside production at the moment."""
        try:
            return Candidate(**json.loads(self._trial.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def start_trial(self, trial: Candidate) -> None:
        """Try a published version beside production, instead of what is tried now."""
        inspect(self.path(trial.version))
        with self._lock():
            self._replace(self._trial, asdict(trial))
            self._log("start trial", **asdict(trial))

    def end_trial(self, *, reason: str | None = None) -> None:
        """Leave all requests to the version in production; without a trial nothing happens."""
        with self._lock():
            if trial := self.trial():
                self._trial.unlink()
                self._log("end trial", version=trial.version, reason=reason)

    def publish(self, bundle: Path) -> str:
        """Verify and copy a bundle; returns its version. The same bundle again changes nothing, another one of the
        same version is refused."""
        info = inspect(bundle)
        target = self.root / "versions" / info.version
        if not _VERSION.fullmatch(info.version):
            raise RegistryError(f"{info.version!r} is not a version: letters, digits and . _ + - only")
        with self._lock():
            if target.exists():
                if (target / "manifest.json").read_bytes() == (bundle / "manifest.json").read_bytes():
                    return info.version
                raise RegistryError(
                    f"version {info.version!r} is published with other content: give the new one its own"
                )
            aside = target.with_name(f".{info.version}.{uuid4().hex}")
            try:
                shutil.copytree(bundle, aside)
                inspect(aside)
                os.utime(aside)
                aside.rename(target)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            self._log("publish", version=info.version)
        return info.version

    def promote(
        self,
        version: str,
        *,
        comparison: BundleComparison | None = None,
        force: bool = False,
        reason: str | None = None,
    ) -> None:
        """Point production at `version`.

        RegistryError when `comparison` finds it significantly worse than the version in production or when one of the
        two was trained on what it should be judged by: `force` with a `reason` overrides both. A comparison of other
        versions is always refused. Without a comparison a reason must say why there is none.
        """
        if force and not (reason and reason.strip()):
            raise RegistryError("forcing a promotion needs a reason: it is what the log tells those who come later")
        info = inspect(self.path(version))
        with self._lock():
            stack = self._stack()
            current = stack[-1] if stack else None
            if current == version:
                return
            objection = self._objection(info, current, comparison, reason)
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
                raise RegistryError(f"{version} is not promoted: {objection}. To do it anyway, force it with a reason")
            self._point([*stack, version])
            self._log("promote", **facts)

    def rollback(self, *, reason: str | None = None) -> str:
        """Point production back at the version promoted before; returns it. RegistryError when there is none."""
        with self._lock():
            stack = self._stack()
            if len(stack) < 2:
                raise RegistryError(f"there is no earlier version to roll back to in {self.root}")
            inspect(self.path(stack[-2]))
            self._point(stack[:-1])
            self._log("rollback", version=stack[-2], previous=stack[-1], reason=reason)
        return stack[-2]

    def log(self) -> list[dict[str, Any]]:
        """Everything that was done, oldest first."""
        path = self.root / "log.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def _objection(
        self, info: BundleInfo, current: str | None, comparison: BundleComparison | None, reason: str | None
    ) -> str | None:
        if current is None:
            return None
        if comparison is None:
            return None if reason else f"neither a comparison with {current} nor a reason for doing without is given"
        if (comparison.candidate, comparison.current) != (info.version, current):
            raise RegistryError(
                f"the comparison is of {comparison.candidate} with {comparison.current}, not of {info.version} "
                f"with {current}: compare again"
            )
        origin = _instant(comparison.origin)
        for version, cut in ((info.version, info.cut), (current, inspect(self.path(current)).cut)):
            if cut > origin:
                return f"{version} was trained on data up to {cut.isoformat()}, after the origin {comparison.origin}"
        if comparison.worse:
            c = comparison
            return (
                f"its {' and '.join(c.worse)} is significantly worse than that of {current} "
                f"(nGini {c.ngini_difference:+.4f} [{c.ngini_low:+.4f}, {c.ngini_high:+.4f}], "
                f"|log bias| {c.total_ratio_difference:+.4f} [{c.total_ratio_low:+.4f}, {c.total_ratio_high:+.4f}])"
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
        aside = path.with_name(f".{path.stem}.{uuid4().hex}")
        try:
            with aside.open("w", encoding="utf-8") as file:
                json.dump(content, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
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
