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
