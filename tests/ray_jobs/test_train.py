"""train --plan: what a run will need, before anything is started."""

from pathlib import Path

import pytest

from ray_jobs import train
from tests.ray_jobs.flags import options_of


def test_train_prints_the_plan_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], histories: Path
) -> None:
    settings = {"histories": histories, "out": tmp_path / "b", "preset": "large", "batch_size": 64, "plan": True}
    settings["gpu_memory_gib"] = 24.0
    train.run(options_of(train.Options, **settings, workers=8))
    said = capsys.readouterr().out
    assert "smallest setting that fits 8 GPUs of 24 GiB in bf16: --zero-stage" in said
    assert said.count(", ZeRO ") == 8
    assert "every worker holds them (loader memory)" in said
    assert not list(tmp_path.iterdir())
    train.run(options_of(train.Options, **settings, memory_events=100, workers=1))
    said = capsys.readouterr().out
    assert "a process holds 1 of" in said
    assert "training reads all of them (loader shards)" in said
    with pytest.raises(ValueError, match="--gpu-memory-gib belongs to --plan"):
        train.run(options_of(train.Options, histories=histories, out=tmp_path / "b", gpu_memory_gib=24.0))
