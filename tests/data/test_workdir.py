"""Atomic writes and staging directories: what a reader sees after errors, and what the next run continues."""

import json
from pathlib import Path

import pytest

from clv.data import workdir


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    workdir.write_json(path, {"a": 1})
    assert path.read_text() == '{\n "a": 1\n}\n'
    with pytest.raises(KeyError, match="stop"), workdir.atomic_write(path) as staged:  # noqa: PT012
        staged.write_text("half")
        assert json.loads(path.read_text()) == {"a": 1}
        raise KeyError("stop")
    assert json.loads(path.read_text()) == {"a": 1}
    assert files(tmp_path) == ["new/x.json"]


def test_a_killed_run_is_continued_by_the_same_plan_and_dropped_by_another(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("old")

    def interrupted(plan: dict[str, int]) -> list[str]:
        with pytest.raises(KeyError, match="killed"), workdir.staging_directory(out, plan) as folder:  # noqa: PT012
            found = files(folder)
            (folder / "journal" / "step").mkdir(parents=True, exist_ok=True)
            (folder / "journal" / "step" / "000001.json").write_text("{}")
            (folder / "part.txt").write_text("done")
            (folder / ".part.half").write_text("ha")
            raise KeyError("killed")
        return found

    assert interrupted({"seed": 1}) == ["lock", "plan.json"]
    assert "part.txt" in interrupted({"seed": 1})
    assert "part.txt" not in interrupted({"seed": 2})
    assert files(out) == ["old.txt"]
    with workdir.staging_directory(out, {"seed": 2}):
        pass
    assert files(tmp_path) == ["out/part.txt"]


def test_one_process_writes_a_folder_and_wrong_input_leaves_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        workdir.staging_directory(out, {}),
        pytest.raises(ValueError, match=r"another process is writing .*out; wait for it, or choose another folder"),
        workdir.staging_directory(out, {}),
    ):
        pass
    with pytest.raises(ValueError, match="wrong"), workdir.staging_directory(tmp_path / "bad", {}):
        raise ValueError("wrong")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_new_folder_replaces_the_old_one_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    for content in ("first", "second"):
        with workdir.temporary_folder(out) as folder:
            (folder / f"{content}.txt").write_text(content)
    assert files(tmp_path) == ["out/second.txt"]
    rename, targets = workdir.os.replace, []

    def fail_once(source: Path, target: Path) -> None:
        targets.append(target)
        if targets.count(out) == 1 and target == out:
            raise OSError("disk full")
        rename(source, target)

    monkeypatch.setattr(workdir.os, "replace", fail_once)
    with pytest.raises(OSError, match="disk full"), workdir.temporary_folder(out) as folder:
        (folder / "third.txt").write_text("third")
    assert files(tmp_path) == ["out/second.txt"]


def test_only_a_missing_empty_or_own_folder_may_be_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    workdir.check_output(out, "a bundle", "manifest.json", "part-*")
    out.mkdir()
    workdir.check_output(out, "a bundle", "manifest.json", "part-*")
    (out / "manifest.json").write_text("{}")
    for target in (out, out / "manifest.json"):
        with pytest.raises(ValueError, match="exists and is not a bundle; choose another --out"):
            workdir.check_output(target, "a bundle", "manifest.json", "part-*")
    (out / "part-1").write_text("x")
    workdir.check_output(out, "a bundle", "manifest.json", "part-*")


def test_a_linked_tree_keeps_existing_targets_and_survives_replacing(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for name in ("a.txt", "sub/b.txt", "skip.txt"):
        workdir.write_text(source / name, "old")
    workdir.write_text(target / "a.txt", "new")
    workdir.link_tree(source, target, lambda name: name != "skip.txt")
    assert {name: (target / name).read_text() for name in files(target)} == {"a.txt": "new", "sub/b.txt": "old"}
    workdir.write_text(target / "sub" / "b.txt", "new")
    assert (source / "sub" / "b.txt").read_text() == "old"
