"""train --plan: what a run will need, before anything is started."""

from dataclasses import replace
from pathlib import Path

import pytest

from ray_jobs import train


def test_train_prints_the_plan_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], histories: Path
) -> None:
    options = train.Options(
        histories=histories,
        out=tmp_path / "b",
        preset="large",
        workers=8,
        plan=True,
        gpu_memory_gib=24.0,
        batch_size=64,
    )
    train.run(options)
    said = capsys.readouterr().out
    assert "smallest setting that fits 8 GPUs of 24 GiB in bf16: --zero-stage" in said
    assert said.count(", ZeRO ") == 8
    assert "every worker holds them (feed memory)" in said
    assert not list(tmp_path.iterdir())
    train.run(replace(options, memory_events=100, workers=1))
    said = capsys.readouterr().out
    assert "a process holds 1 of" in said
    assert "the network is fed from all (feed shards)" in said
    with pytest.raises(ValueError, match="--gpu-memory-gib belongs to --plan"):
        train.run(replace(options, plan=False))
