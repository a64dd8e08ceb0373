"""What users get wrong, and what their data get wrong: one clear line, before Ray starts, or a counted reject."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clv.cluster import preparing, session, training, work_units
from clv.data.dataset import PreparedDataset
from clv.data.histories import Histories, concat
from clv.data.spec.models import DatasetSpec
from clv.forecast.predictor import Predictor
from clv.train import fitting
from clv.train.config import TrainConfig

CUT = "2024-01-01"
DAY_S = 86_400
NEW_YEAR_S = 1_704_067_200  # 2024-01-01 UTC


@dataclass(frozen=True)
class Ended:
    """How a job ended: exit code and what it said."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls the job's main() here, with the command line given; a job that starts Ray fails the test."""

    def no_ray(**options: Any) -> None:
        pytest.fail("Ray was started before the arguments were looked at")

    def call(verb: str, *arguments: object) -> Ended:
        module = importlib.import_module(f"ray_jobs.{verb}")
        monkeypatch.setattr(session, "ray_session", no_ray)
        monkeypatch.setattr(sys, "argv", [verb, *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            module.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return call


def check_line(ended: Ended, verb: str, code: int, *parts: str) -> None:
    """One line on stderr that names the job and holds the parts."""
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    assert ended.err.startswith(f"{verb}: ")
    assert ended.err.count("\n") == 1, ended.err
    for part in parts:
        assert part in ended.err


# Dataset files and tables

COLUMNS = "{customer_id: customer, event_time: at, order_id: order, amount: price}"


def write_shop(folder: Path, text: str | bytes, columns: str = COLUMNS, more: str = "") -> Path:
    """A dataset file for a log in CSV."""
    (folder / "log.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    spec = f"name: odd\ntimezone: Europe/Berlin\ncurrency: EUR\nhorizons_days: [30, 90]\n{more}\n"
    spec += f"events:\n  path: {folder}/log.csv\n  columns: {columns}\n"
    (folder / "spec.yaml").write_text(spec)
    return folder / "spec.yaml"


HEADER = "customer,at,order,price\n"
ROWS = HEADER + "".join(f"c{i % 3},2024-01-{i + 1:02},o{i},{i}.5\n" for i in range(9))


@pytest.mark.parametrize(
    ("text", "columns", "more", "parts"),
    [
        (
            ROWS,
            COLUMNS.replace("price", "prise"),
            "",
            ["columns.amount", "'prise'", "did you mean 'price'?", "log.csv"],
        ),
        (ROWS, COLUMNS, "horizon_days: [30]", ["horizon_days", "unknown key", "did you mean 'horizons_days'?"]),
        (ROWS, COLUMNS, "max_rejected_share: many", ["max_rejected_share", "'many'"]),
        ("", COLUMNS, "", ["log.csv is empty; there is nothing to prepare"]),
    ],
)
@pytest.mark.parametrize("how", ["--check", "--out"])
def test_a_wrong_dataset_file_is_named_with_its_remedy(
    tmp_path: Path, run: Run, text: str, columns: str, more: str, parts: list[str], how: str
) -> None:
    spec = write_shop(tmp_path, text, columns, more)
    ended = run("prepare", "--dataset", spec, *([how] if how == "--check" else [how, tmp_path / "out"]))
    check_line(ended, "prepare", 2, str(spec), *parts)
    assert not (tmp_path / "out").exists()


def test_a_column_of_another_type_is_refused_by_name_and_type(tmp_path: Path, run: Run) -> None:
    pq.write_table(pa.table({"customer": ["a"], "at": ["2024-01-01"], "price": [True]}), tmp_path / "log.parquet")
    spec = write_shop(tmp_path, ROWS, "{customer_id: customer, event_time: at, amount: price}")
    spec.write_text(spec.read_text().replace("log.csv", "log.parquet"))
    ended = run("prepare", "--dataset", spec, "--out", tmp_path / "out")
    check_line(ended, "prepare", 2, "events[0].columns.amount", "'price'", "bool, not a number")


def test_a_table_with_a_header_only_holds_nothing_to_prepare(tmp_path: Path, run: Run) -> None:
    ended = run("prepare", "--check", "--dataset", write_shop(tmp_path, HEADER))
    check_line(ended, "prepare", 2, "hold no rows; there is nothing to prepare")


def test_a_log_that_is_mostly_rejected_ends_with_the_reasons(tmp_path: Path, run: Run) -> None:
    rows = HEADER + "a,2024-01-01,o1,5\n" + "b,yesterday,o2,5\n" * 3
    ended = run("prepare", "--check", "--dataset", write_shop(tmp_path, rows))
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert "3 of 4 events (75.0%) were rejected, max_rejected_share is 5.0%" in ended.err
    assert "3 event_time is unreadable" in ended.err
    assert "raise max_rejected_share" in ended.err


BAD_ROWS = {
    b"k\xe4the,2024-01-05,o1,5\n": "malformed row",
    b"a,2024-01-05,o1,inf\n": "amount is not a finite number",
    b"a,2024-01-05,o1,five\n": "amount is not a finite number",
    b"a,2024-01-05,o1,nan\n": "amount is missing",
    b"a,1890-01-05,o1,5\n": "event_time is unreadable or outside 1970 to 2099",
    b"a,2150-01-05,o1,5\n": "event_time is unreadable or outside 1970 to 2099",
    b"a,5 Jan,o1,5\n": "event_time is unreadable or outside 1970 to 2099",
    b"a,,o1,5\n": "event_time is missing",
    b",2024-01-05,o1,5\n": "customer_id is missing (anonymous)",
    b"a,2024-01-05,o1,5,6\n": "malformed row",
}


def prepare_here(spec: Path, out: Path, partitions: int = 1) -> tuple[dict[str, Any], Histories]:
    loaded = DatasetSpec.load(spec)
    manifest = preparing.prepare(loaded, str(spec), out, run=work_units.run_here, partitions=partitions)
    shards = [pq.read_table(out / part["file"]) for part in manifest["shards"]]
    return manifest, Histories.from_table(concat(shards))


def test_every_bad_row_is_set_aside_with_its_reason_and_the_good_ones_stay(tmp_path: Path) -> None:
    spec = write_shop(tmp_path, ROWS.encode() + b"".join(BAD_ROWS), more="max_rejected_share: 0.6")
    manifest, h = prepare_here(spec, tmp_path / "out")
    accounting = manifest["row_accounting"]["events"]
    reasons = list(BAD_ROWS.values())
    assert accounting["rejected"] == {reason: reasons.count(reason) for reason in set(reasons)}
    assert (accounting["read"], accounting["accepted"]) == (19, 9)
    assert h.customer_id.to_pylist() == ["c0", "c1", "c2"]
    rejects = pa.concat_tables([pq.read_table(tmp_path / "out" / name) for name in manifest["rejects"]])
    assert sorted(rejects["reason"].to_pylist()) == sorted(reasons)


def test_an_order_id_that_customers_share_is_an_order_of_each_and_a_notice(tmp_path: Path) -> None:
    rows = HEADER + "a,2024-01-01,o1,5\na,2024-01-01,o1,7\nb,2024-01-02,o1,9\n"
    manifest, h = prepare_here(write_shop(tmp_path, rows), tmp_path / "out", partitions=3)
    assert {name: [h.amount[i]] for i, name in enumerate(h.customer_id.to_pylist())} == {"a": [12.0], "b": [9.0]}
    notices = manifest["row_accounting"]["events"]["notices"]
    assert notices == {"order ids that stand for several customers (each gets an order of its own)": 1}


# Shops of an odd shape


def write_log(folder: Path, customer: list[str], day: np.ndarray[Any, Any]) -> Path:
    """Histories of purchases of 10 EUR, days from 2023-01-01 on."""
    at = NEW_YEAR_S - 365 * DAY_S + (day * DAY_S).astype(np.int64)
    pq.write_table(pa.table({"customer": customer, "at": at, "price": np.full(len(at), 10.0)}), folder / "log.parquet")
    spec = write_shop(folder, ROWS, "{customer_id: customer, event_time: at, amount: price}\n  time_format: unix_s")
    spec.write_text(spec.read_text().replace("log.csv", "log.parquet"))
    prepare_here(spec, folder / "histories")
    return folder / "histories"


def test_a_customer_with_100_000_events_keeps_them_all_and_is_scored_with_the_others(
    tmp_path: Path, rng: np.random.Generator, small_bundle: Path
) -> None:
    customer = ["big"] * 100_000 + [f"c{i % 50}" for i in range(500)]
    folder = write_log(tmp_path, customer, rng.uniform(0, 364.9, 100_500))
    table = PreparedDataset.open(folder).histories()
    h = Histories.from_table(table)
    assert np.diff(h.offsets)[h.customer_id.to_pylist().index("big")] == pytest.approx(100_000, rel=0.02)
    predictor = Predictor(small_bundle)
    scores = predictor.predict(table, predictor.cut).to_pandas()
    assert len(scores) == 51 * 2
    assert np.isfinite(scores.select_dtypes("float64").to_numpy()).all()
    assert (scores.loc[scores["customer_id"] == "big", "value_rank"] == 1).all()


def test_one_customer_only_can_be_trained_on(tmp_path: Path) -> None:
    folder = write_log(tmp_path, ["a"] * 12, np.arange(12) * 40.0)
    phases = fitting.plan(
        training.read_dataset(folder), PreparedDataset.open(folder).origin(None), TrainConfig(num_origins=4)
    )
    assert len(phases.final.days)
    assert len(phases.notices) == 1
    assert "BTYD model: 1 customers bought again, fewer than 50" in phases.notices[0]


def test_a_log_too_short_to_hold_an_origin_out_says_what_is_dropped(tmp_path: Path, rng: np.random.Generator) -> None:
    folder = write_log(tmp_path, [f"c{i % 20}" for i in range(300)], np.sort(rng.uniform(0, 75, 300)))
    phases = fitting.plan(training.read_dataset(folder), PreparedDataset.open(folder).origin(None), TrainConfig())
    assert phases.holdout is None
    assert "horizon 90 days: the log fully observes it at no past origin" in phases.notices[0]
    assert "too short (76 days) to hold an origin out: no calibration, no early stopping" in phases.notices[1]


def test_a_log_too_short_for_any_horizon_is_refused_before_ray_starts(
    tmp_path: Path, run: Run, rng: np.random.Generator
) -> None:
    folder = write_log(tmp_path, [f"c{i % 20}" for i in range(60)], np.sort(rng.uniform(0, 20, 60)))
    ended = run("train", "--histories", folder, "--out", tmp_path / "bundle")
    check_line(ended, "train", 1, "has 20 days: too short", "shortest horizon (30 days)", "horizons_days")


def test_a_single_event_is_refused_with_the_days_it_leaves(tmp_path: Path, run: Run) -> None:
    folder = write_log(tmp_path, ["a"], np.array([3.0]))
    ended = run("train", "--histories", folder, "--out", tmp_path / "bundle")
    check_line(ended, "train", 1, "leaves 1 days of log before it", "choose a later --origin")


# Origins, folders, settings

OUTSIDE = "lies before the log"


@pytest.mark.parametrize(
    ("verb", "arguments", "parts"),
    [
        ("train", ["--origin", "2020-01-01"], [OUTSIDE, "2020-01-01", "choose one inside it"]),
        ("train", ["--origin", "2030-01-01"], ["2030-01-01 lies after the log ends, 2024-07-01"]),
        ("train", ["--origin", "someday"], ["'someday' is not a date or time: write YYYY-MM-DD"]),
        ("train", ["--batch-size", "1"], ["batch_size 1 is less than workers x accumulation = 2 x 1"]),
        (
            "train",
            ["--zero-stage", "1", "--offload-parameters"],
            ["engine.offload_parameters needs engine.zero_stage 3"],
        ),
        ("train", ["--deepspeed", "none.json"], ["none.json"]),
        ("train", ["--workers", "0"], ["workers must be at least 1, not 0"]),
        ("train", ["--accumulation", "0"], ["engine.accumulation must be at least 1, not 0"]),
        ("train", ["--epochs", "0"], ["epochs must be at least 1, not 0"]),
        ("score", ["--origin", "2020-01-01"], [OUTSIDE, "choose one inside it"]),
        ("score", ["--origin", "2023-06-01"], ["2023-06-01 lies before the bundle's cut 2024-01-01"]),
        (
            "score",
            ["--origin", "2030-01-01"],
            ["2030-01-01 lies more than 90 days past the data", "prepare newer events"],
        ),
        ("score", ["--horizons-days", "0"], ["--horizons-days [0] must lie between 1 and 3650"]),
        ("score", ["--workers", "0"], ["--workers 0 must be at least 1"]),
        ("backtest", ["--origins", "2020-01-01"], [OUTSIDE, "choose one inside it"]),
        ("backtest", ["--origins", "2030-01-01"], ["2030-01-01", "ends at 2024-07-01", "choose earlier --origins"]),
        ("backtest", ["--origins", "2024-05-01"], ["needs the log until 2024-07-30", "a shorter --horizon-days"]),
        ("backtest", ["--origins", ", "], ["--origins names no date; write for example"]),
        ("backtest", ["--origins", "2024-01-01", "--seeds", "0"], ["--seeds 0 must be at least 1"]),
        (
            "backtest",
            ["--origins", "2023-10-01", "--bundle", "BUNDLE"],
            ["was cut at 2024-01-01, after origin 2023-10-01", "leave --bundle out"],
        ),
    ],
)
def test_an_impossible_origin_or_setting_is_one_line_before_ray_starts(
    tmp_path: Path, run: Run, histories: Path, small_bundle: Path, verb: str, arguments: list[str], parts: list[str]
) -> None:
    given = [small_bundle if argument == "BUNDLE" else argument for argument in arguments]
    if verb == "score":
        given += ["--bundle", small_bundle]
    ended = run(verb, "--histories", histories, "--out", tmp_path / "out", *given)
    check_line(ended, verb, 1, *parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("train", ["--out", "OUT"]),
        ("score", ["--out", "OUT", "--bundle", "BUNDLE"]),
        ("backtest", ["--out", "OUT", "--origins", CUT]),
        ("load_store", ["--store", "OUT"]),
        ("embed", []),
    ],
)
@pytest.mark.parametrize("folder", ["absent", "empty"])
def test_a_folder_that_holds_no_histories_is_named(
    tmp_path: Path, run: Run, small_bundle: Path, verb: str, arguments: list[str], folder: str
) -> None:
    (tmp_path / "empty").mkdir()
    stand_in = {"OUT": tmp_path / "out", "BUNDLE": small_bundle}
    ended = run(verb, "--histories", tmp_path / folder, *(stand_in.get(a, a) for a in arguments))
    check_line(ended, verb, 1, str(tmp_path / folder), "prepare")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("train", ["--out", "OUT"]),
        ("score", ["--out", "OUT", "--bundle", "BUNDLE"]),
        ("backtest", ["--out", "OUT", "--origins", CUT]),
    ],
)
@pytest.mark.parametrize("damage", ["is missing", "is damaged"])
def test_a_missing_or_cut_off_shard_is_named(
    tmp_path: Path, run: Run, histories: Path, small_bundle: Path, verb: str, arguments: list[str], damage: str
) -> None:
    folder = shutil.copytree(histories, tmp_path / "histories")
    shard = folder / "shards" / "part-00001.parquet"
    if damage == "is missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:3000])
    stand_in = {"OUT": tmp_path / "out", "BUNDLE": small_bundle}
    ended = run(verb, "--histories", folder, *(stand_in.get(a, a) for a in arguments))
    check_line(ended, verb, 1, f"{shard} {damage}", "prepare the histories again")


@pytest.mark.parametrize("damage", ["tampered", "truncated", "absent", "foreign"])
@pytest.mark.parametrize("verb", ["score", "backtest", "promote"])
def test_a_damaged_or_foreign_bundle_is_refused_before_any_work(
    tmp_path: Path, run: Run, histories: Path, small_bundle: Path, verb: str, damage: str
) -> None:
    folder = tmp_path / "bundle"
    if damage in ("tampered", "truncated"):
        shutil.copytree(small_bundle, folder)
        weights = folder / "weights.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content if damage == "tampered" else content[:1000])
    elif damage == "foreign":
        shutil.copytree(histories, folder)
    arguments: dict[str, list[object]] = {
        "score": ["--histories", histories, "--out", tmp_path / "out"],
        "backtest": ["--histories", histories, "--out", tmp_path / "out", "--origins", CUT],
        "promote": ["--registry", tmp_path / "out"],
    }
    said = {
        "absent": "is not a bundle: it has no manifest.json",
        "foreign": "is damaged or not that of a bundle",
    }.get(damage, "weights.safetensors differs from its sha256")
    check_line(run(verb, "--bundle", folder, *arguments[verb]), verb, 1, str(folder), said)
    assert not list(tmp_path.glob("out/*.json"))


def test_the_bundle_of_another_shop_does_not_score(
    tmp_path: Path, run: Run, histories: Path, small_bundle: Path
) -> None:
    folder = shutil.copytree(histories, tmp_path / "histories")
    spec = (folder / "spec.yaml").read_text()
    (folder / "spec.yaml").write_text(spec.replace("currency: EUR", "currency: USD"))
    ended = run("score", "--bundle", small_bundle, "--histories", folder, "--out", tmp_path / "out")
    check_line(ended, "score", 1, "the bundle's currency is 'EUR', that of the histories 'USD': not the same shop")


@pytest.mark.parametrize(
    ("verb", "arguments", "code"),
    [
        ("train", ["--histories", "HISTORIES"], 1),
        ("score", ["--histories", "HISTORIES", "--bundle", "BUNDLE"], 1),
        ("prepare", ["--dataset", "SPEC"], 2),
    ],
)
def test_a_folder_of_something_else_is_not_overwritten(
    tmp_path: Path, run: Run, histories: Path, small_bundle: Path, verb: str, arguments: list[str], code: int
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("three years of work")
    stand_in = {"HISTORIES": histories, "BUNDLE": small_bundle, "SPEC": write_shop(tmp_path, ROWS)}
    ended = run(verb, *(stand_in.get(a, a) for a in arguments), "--out", tmp_path / "out")
    check_line(ended, verb, code, f"{tmp_path / 'out'} exists", "choose another")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_shell_sees_the_code_and_the_line(
    tmp_path: Path, job: Callable[..., subprocess.CompletedProcess[str]], histories: Path
) -> None:
    done = job("backtest", "--histories", histories, "--origins", "2024-06-01", "--out", tmp_path / "out")
    check_line(Ended(done.returncode, done.stdout, done.stderr), "backtest", 1, "needs the log until 2024-08-30")


@pytest.mark.ray
def test_errors_inside_tasks_come_without_pages_of_traceback(tmp_path: Path, ray_cluster: None) -> None:
    import ray

    @ray.remote
    def fails(kind: type[Exception]) -> None:
        raise kind("the second line is for nobody\nof interest")

    with pytest.raises(ValueError, match=r"^the second line is for nobody\nof interest$"):
        session.get(fails.remote(ValueError))
    with pytest.raises(RuntimeError, match=r"^FloatingPointError: the second line is for nobody$"):
        session.get(fails.remote(FloatingPointError))


@pytest.mark.ray
def test_a_log_without_rows_is_refused_on_ray_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    from ray_jobs import prepare

    arguments = ["--dataset", str(write_shop(tmp_path, HEADER)), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments])
    with pytest.raises(SystemExit, match=r"^2$"):
        prepare.main()
    said = capsys.readouterr().err
    assert "hold no rows; there is nothing to prepare" in said
    assert "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "spec.yaml"]
