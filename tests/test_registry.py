"""Publishing, promoting and rolling back: nothing worse slips through, and the pointer is never half-written."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clv import bundle as bundles
from clv.registry import BundleComparison, Candidate, Registry, RegistryError, compare

MakeBundle = Callable[..., Path]


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """A bundle folder with next to nothing in it, under a version that reads better than a hash."""

    def make(version: str, cut: str = "2011-03-01T00:00:00+00:00", content: float = 0.0) -> Path:
        folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "bundle"
        empty: dict[str, Any] = {"vocab": {}, "btyd": {}, "calibration": {}, "metrics": {}, "items": {}}
        config = {"cut_us": int(datetime.fromisoformat(cut).timestamp() * 1e6), "dataset": "shop"}
        bundles.save(bundles.Bundle(config=config, weights={"w": np.array([content])}, **empty), folder)
        manifest = json.loads((folder / bundles.MANIFEST).read_text())
        (folder / bundles.MANIFEST).write_text(json.dumps(manifest | {"version": version}))
        return folder

    return make


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def comparison(
    candidate: str, current: str, *, log_bias: float = 0.0, noise: float = 0.1, origin: str = "2011-06-12"
) -> BundleComparison:
    """600 customers; the current bundle predicts with little noise, the candidate with `noise` and `log_bias`."""
    rng = np.random.default_rng(1)
    ids = [f"c{i}" for i in range(600)]
    rate = rng.lognormal(0, 1, 600)
    value = rng.poisson(rate) * 20.0
    blurred = rate * np.exp(rng.normal(0, noise, 600))
    total_ratio_kept = blurred * rate.mean() / blurred.mean()
    guess = {current: rate * np.exp(rng.normal(0, 0.1, 600)), candidate: total_ratio_kept * np.exp(log_bias)}
    scores = {
        v: pd.DataFrame({"customer_id": ids, "value_mean": g * 20}).sample(frac=1, random_state=3)
        for v, g in guess.items()
    }
    actual = pd.DataFrame({"customer_id": ids, "value": value})
    return compare(actual, scores, candidate=candidate, current=current, dataset="shop", origin=origin, horizon_days=90)


def test_a_published_bundle_can_be_promoted_and_read(registry: Registry, make_bundle: MakeBundle) -> None:
    assert registry.current() is None
    assert registry.publish(make_bundle("v1")) == "v1"
    assert registry.current() is None, "publishing is not promoting"
    registry.promote("v1")
    assert registry.current() == "v1"
    assert bundles.load(registry.production()).weights["w"] == 0.0
    assert registry.versions() == ["v1"]


def test_publishing_twice_changes_nothing_and_never_replaces(registry: Registry, make_bundle: MakeBundle) -> None:
    bundle = make_bundle("v1")
    registry.publish(bundle)
    assert registry.publish(bundle) == "v1"
    with pytest.raises(RegistryError, match="published with other content"):
        registry.publish(make_bundle("v1", content=5.0))
    assert bundles.load(registry.path("v1")).weights["w"] == 0.0


def test_damage_is_found_at_publishing_and_at_promoting(registry: Registry, make_bundle: MakeBundle) -> None:
    bundle = make_bundle("v1")
    (bundle / "weights.safetensors").write_bytes(b"weighty")
    with pytest.raises(bundles.BundleError, match=r"weights.safetensors differs from its sha256"):
        registry.publish(bundle)
    assert registry.versions() == []
    registry.publish(make_bundle("v2"))
    (registry.path("v2") / "weights.safetensors").unlink()
    with pytest.raises(bundles.BundleError, match=r"weights.safetensors is missing"):
        registry.promote("v2")
    assert registry.current() is None


def test_what_is_no_bundle_is_refused(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(bundles.BundleError, match=r"no manifest.json"):
        registry.publish(tmp_path)


@pytest.mark.parametrize("version", ["../v1", "", ".hidden", "a/b", "a b"])
def test_a_version_cannot_leave_the_root(registry: Registry, make_bundle: MakeBundle, version: str) -> None:
    with pytest.raises(RegistryError, match="is not a version"):
        registry.path(version)
    with pytest.raises(RegistryError, match="is not a version"):
        registry.publish(make_bundle(version))


def test_the_error_of_an_unknown_version_names_the_known_ones(registry: Registry, make_bundle: MakeBundle) -> None:
    registry.publish(make_bundle("v1"))
    with pytest.raises(RegistryError, match="published are: v1"):
        registry.promote("v2")
    with pytest.raises(RegistryError, match="promote a version first"):
        registry.production()


@pytest.fixture
def with_two(registry: Registry, make_bundle: MakeBundle) -> Registry:
    """v1 in production, v2 published."""
    registry.publish(make_bundle("v1"))
    registry.publish(make_bundle("v2", content=5.0))
    registry.promote("v1")
    return registry


def test_an_equal_bundle_is_promoted(with_two: Registry) -> None:
    found = comparison("v2", "v1")
    assert found.worse == ()
    assert found.ngini_low < 0 < found.ngini_high
    with_two.promote("v2", comparison=found)
    assert with_two.current() == "v2"
    assert with_two.log()[-1]["comparison"]["customers"] == 600


@pytest.mark.parametrize(
    ("wrong", "what"),
    [({"noise": 3.0}, "ranking"), ({"log_bias": 0.7}, "total"), ({"noise": 3.0, "log_bias": 1.0}, "ranking and total")],
)
def test_a_significantly_worse_bundle_is_refused_unless_forced(
    with_two: Registry, wrong: dict[str, float], what: str
) -> None:
    found = comparison("v2", "v1", **wrong)
    with pytest.raises(RegistryError, match=f"significantly worse than v1 in {what} "):
        with_two.promote("v2", comparison=found)
    with pytest.raises(RegistryError, match=f"significantly worse than v1 in {what} "):
        with_two.promote("v2", comparison=found, reason="a reason alone is not enough")
    with pytest.raises(RegistryError, match="needs a reason"):
        with_two.promote("v2", comparison=found, force=True)
    assert with_two.current() == "v1"
    with_two.promote("v2", comparison=found, force=True, reason="v1 leaks")
    assert with_two.current() == "v2"
    last = with_two.log()[-1]
    assert (last["act"], last["forced"], last["reason"]) == ("promote", True, "v1 leaks")
    assert what in last["objection"]
    assert [entry["act"] for entry in with_two.log()].count("refuse") == 2


def test_a_better_bundle_is_promoted_and_its_reverse_is_not(with_two: Registry) -> None:
    worse = comparison("v2", "v1", noise=3.0)
    better = replace(
        worse,
        ngini_difference=-worse.ngini_difference,
        ngini_low=-worse.ngini_high,
        ngini_high=-worse.ngini_low,
        total_ratio_low=-worse.total_ratio_high,
        total_ratio_high=-worse.total_ratio_low,
    )
    assert better.worse == ()
    with_two.promote("v2", comparison=better)
    assert with_two.current() == "v2"


def test_a_bundle_trained_after_the_origin_is_refused(registry: Registry, make_bundle: MakeBundle) -> None:
    registry.publish(make_bundle("v1"))
    registry.publish(make_bundle("v2", cut="2011-09-01T00:00:00+00:00"))
    registry.promote("v1")
    with pytest.raises(RegistryError, match="v2 was trained on data up to 2011-09-01"):
        registry.promote("v2", comparison=comparison("v2", "v1"))
    assert registry.current() == "v1"


def test_the_comparison_must_be_of_these_two_versions(with_two: Registry) -> None:
    for wrong in (comparison("v2", "v0"), comparison("v3", "v1")):
        with pytest.raises(RegistryError, match="compare again"):
            with_two.promote("v2", comparison=wrong, force=True, reason="whatever")


def test_without_a_comparison_a_reason_is_needed(with_two: Registry) -> None:
    with pytest.raises(RegistryError, match="needs a comparison with v1, or a reason"):
        with_two.promote("v2")
    with_two.promote("v2", reason="trained up to yesterday, nothing is held out yet")
    assert with_two.current() == "v2"


def test_comparing_needs_the_same_customers() -> None:
    actual = pd.DataFrame({"customer_id": ["a", "b"], "value": [1.0, 0.0]})
    scores = pd.DataFrame({"customer_id": ["a", "b"], "value_mean": [1.0, 2.0]})
    for wrong in (scores.iloc[:1], pd.concat([scores, scores])):
        with pytest.raises(ValueError, match="scores of v2 must hold each of the 2 customers"):
            compare(
                actual, {"v1": scores, "v2": wrong}, candidate="v2", current="v1", dataset="d", origin="2011-06-12",
                horizon_days=90,
            )  # fmt: skip


def test_rolling_back_returns_to_the_version_before(with_two: Registry, make_bundle: MakeBundle) -> None:
    with_two.publish(make_bundle("v3", content=6.0))
    with_two.promote("v2", reason="r")
    with_two.promote("v3", reason="r")
    assert with_two.rollback(reason="complaints") == "v2"
    assert with_two.current() == "v2"
    assert with_two.rollback() == "v1"
    with pytest.raises(RegistryError, match="no earlier version"):
        with_two.rollback()
    assert with_two.current() == "v1"
    assert with_two.log()[-2]["reason"] == "complaints"


def test_promoting_what_is_in_production_changes_nothing(with_two: Registry) -> None:
    with_two.promote("v1")
    with pytest.raises(RegistryError, match="no earlier version"):
        with_two.rollback()


def test_a_trial_names_a_published_version_until_it_ends_and_is_logged(with_two: Registry) -> None:
    assert with_two.candidate() is None
    with pytest.raises(RegistryError, match="v9' is not in"):
        with_two.start_candidate(Candidate("v9", 0.1, shadow=False))
    with_two.start_candidate(Candidate("v2", 0.1, shadow=False))
    with_two.start_candidate(Candidate("v2", 0.5, shadow=True))
    assert with_two.candidate() == Candidate("v2", 0.5, shadow=True)
    assert with_two.current() == "v1"
    with_two.end_candidate(reason="enough seen")
    with_two.end_candidate()
    assert with_two.candidate() is None
    acts = [(line["act"], line["version"]) for line in with_two.log()[-3:]]
    assert acts == [("start candidate", "v2"), ("start candidate", "v2"), ("end candidate", "v2")]
    assert with_two.log()[-1]["reason"] == "enough seen"


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_of_a_trial_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        Candidate("v2", share, shadow=False)


def test_readers_always_find_a_whole_pointer(with_two: Registry) -> None:
    done = threading.Event()
    seen: list[str | None] = []
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                seen.append(with_two.current())
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        with_two.promote("v2", reason="r")
        with_two.rollback()
    done.set()
    reader.join()
    assert not failures
    assert set(seen) <= {"v1", "v2"}
    assert not list(with_two.root.glob(".production*"))


def test_processes_that_publish_and_promote_at_once_take_turns(registry: Registry, make_bundle: MakeBundle) -> None:
    code = (
        "import sys, pathlib; from clv.registry import Registry; r = Registry(pathlib.Path(sys.argv[1]));"
        "r.promote(r.publish(pathlib.Path(sys.argv[2])), reason='r')"
    )
    made = [make_bundle(f"v{i}", content=float(i)) for i in range(4)]
    runs = [subprocess.Popen([sys.executable, "-c", code, registry.root, bundle]) for bundle in made]
    assert [run.wait(120) for run in runs] == [0, 0, 0, 0]
    promoted = json.loads((registry.root / "production.json").read_text())["promoted"]
    assert sorted(promoted) == ["v0", "v1", "v2", "v3"]
    assert [entry["version"] for entry in registry.log() if entry["act"] == "promote"] == promoted
