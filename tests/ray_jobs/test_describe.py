"""The describe job: drafts a spec that loads, from real files, unusual files and mistakes."""

from pathlib import Path

import pytest

from clv.data.spec.draft import draft
from clv.data.spec.models import DatasetSpec, SpecError
from ray_jobs import describe
from tests.ray_jobs.verbs import DATASETS, job, needs_package


@pytest.mark.parametrize("source", ["cdnow", "complete_journey"])
def test_a_described_file_gives_a_spec_that_reads_all_of_its_rows(tmp_path: Path, source: str) -> None:
    spec = DatasetSpec.load(DATASETS / f"{source}.yaml")
    path = spec.events[0].path
    assert path is not None
    needs_package(path.removeprefix("pkg://").split("/")[0])
    drafted = DatasetSpec.parse(draft(path), "draft")
    assert drafted.events[0].columns.customer_id == spec.events[0].columns.customer_id
    assert drafted.events[0].columns.event_time == spec.events[0].columns.event_time
    assert drafted.events[0].columns.amount == spec.events[0].columns.amount
    assert drafted.events[0].time_format == spec.events[0].time_format


def test_describe_guesses_separator_encoding_times_and_event_types(tmp_path: Path) -> None:
    lines = ["Kunde-ID;Product ID;Action;Created At;Price"]
    lines += [
        f"K{i};Kännchen {i};{kind};{20 + i % 8}.12.2023 1{i % 10}:30;{i},50"
        for i, kind in enumerate(["view", "buy", "spin"] * 9)
    ]
    (tmp_path / "log.csv").write_bytes("\n".join(lines).encode("cp1252"))
    text = draft(str(tmp_path / "log.csv"), "Europe/Berlin")
    source = DatasetSpec.parse(text, "draft").events[0]
    assert (source.delimiter, source.encoding, source.time_format) == (";", "cp1252", "%d.%m.%Y %H:%M")
    assert (source.decimal, source.columns.unit_price) == (",", "Price")
    assert source.event_type.model_dump()["map"] == {"view": "view", "buy": "purchase", "spin": "spin"}  # type: ignore[union-attr]
    assert "['spin'] are none of our types" in text
    assert "customer_id: no column is called like a customer; 'Kunde-ID' is a guess" in text


def test_describe_knows_the_column_names_of_the_readme(tmp_path: Path) -> None:
    lines = [
        "buyer,paid_at,order,sku,qty,price,title",
        *(f"B{i},2024-01-{i:02},A{i},S1,2,9.5,Tea" for i in range(1, 9)),
    ]
    (tmp_path / "orders.csv").write_text("\n".join(lines))
    text = draft(str(tmp_path / "orders.csv"))
    columns = DatasetSpec.parse(text, "draft").events[0].columns
    assert (columns.customer_id, columns.event_time, columns.unit_price) == (["buyer"], "paid_at", "price")
    assert "is a guess" not in text


def test_describe_of_nothing_exits_with_2(tmp_path: Path) -> None:
    absent = tmp_path / "absent.csv"
    done = job("describe", absent)
    assert done.returncode == 2
    assert done.stderr == f"describe: {absent}: file: no file matches {absent}; correct the path\n"


def test_a_draft_is_written_to_a_new_file_only(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("customer_id,event_time,amount\na,2024-01-01,5\n")
    options = describe.Options(file=str(tmp_path / "log.csv"), out=tmp_path / "specs" / "shop.yaml")
    describe.run(options)
    assert DatasetSpec.load(tmp_path / "specs" / "shop.yaml").events[0].columns.amount == "amount"
    with pytest.raises(SpecError, match=r"--out .*shop\.yaml exists; choose another name"):
        describe.run(options)
