"""Paths of source files: globs, folders, packages, variables, and the first bytes of compressed files."""

import gzip
from pathlib import Path

import pytest

from clv.data.sources import paths
from clv.data.spec.models import SpecError


def test_a_glob_or_folder_gives_its_data_files_in_order(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c.txt", "day=1/a.csv", "_SUCCESS", ".a.csv.crc", "_tmp/z.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")

    def names(path: str) -> list[str]:
        return [str(Path(file).relative_to(tmp_path)) for file in paths.expand(path, "path", "s")]

    assert names(f"{tmp_path}/*.csv") == ["a.csv", "b.csv"]
    assert names(str(tmp_path)) == ["a.csv", "b.csv", "c.txt", "day=1/a.csv"]
    assert names(f"{tmp_path}/**/a.csv") == ["a.csv", "day=1/a.csv"]


def test_variables_and_packages_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.csv").write_text("x")
    monkeypatch.setenv("SHOP_LOGS", str(tmp_path))
    assert paths.expand("${SHOP_LOGS}/log.csv", "path", "s") == [str(tmp_path / "log.csv")]
    assert paths.expand("pkg://clv/data/clock.py", "path", "s")[0].endswith("clv/data/clock.py")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("${NO_SUCH_PLACE}/x.csv", "s: key: the environment variable NO_SUCH_PLACE is not set; `export NO_SUCH_PLACE="),
        ("pkg://no_such_package/x.csv", "s: key: the package 'no_such_package' is not installed; `pip install` it"),
        ("/no/such/*.csv", r"s: key: no file matches /no/such/\*\.csv; correct the path"),
        ("no_such.csv", "s: key: no file matches no_such.csv in /.*; correct the path"),
    ],
)
def test_a_path_without_files_is_one_error_with_its_remedy(path: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        paths.expand(path, "key", "s")


def test_the_head_of_a_compressed_file_is_decompressed(tmp_path: Path) -> None:
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n"))
    (tmp_path / "x.csv").write_bytes(b"a,b\n1,2\n")
    assert [paths.read_head(str(tmp_path / name), 5) for name in ("x.csv.gz", "x.csv")] == [b"a,b\n1"] * 2
