"""Options of a job: preset, YAML file and command line, in this order; every field is a flag and a key."""

from __future__ import annotations

from pathlib import Path

import pytest

from clv.train.config import TrainConfig
from clv.train.settings import settings_of
from ray_jobs import score, train, tune
from ray_jobs.options import PRESETS, parse_options, read_preset

REQUIRED = ["--histories", "h", "--out", "o"]


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text("learning_rate: 0.5\nepochs: 7\naccumulation: 4\npreset: base\nworkers: 3\nhistories: there\n")
    found = parse_options(train.Options, ["--out", "o", "--config", str(path), "--epochs", "2"])
    assert (found.training.epochs, found.training.optimizer.learning_rate) == (2, 0.5)
    assert (found.training.engine.accumulation, found.cluster.workers, found.histories) == (4, 3, Path("there"))
    assert found.training.model.backbone.width == 768
    found = parse_options(train.Options, [*REQUIRED, "--config", str(path), "--preset=large", "--accumulation", "1"])
    assert (found.training.model.backbone.width, found.training.engine.accumulation) == (1024, 1)


def test_without_a_file_a_job_trains_the_tiny_preset_which_is_the_default() -> None:
    assert parse_options(train.Options, REQUIRED).training == TrainConfig() == read_preset("tiny")


@pytest.mark.parametrize(
    ("name", "shape", "rate"),
    [
        ("tiny", (128, 4, 4, 512, 64), 2e-3),
        ("minilm", (384, 6, 12, 1536, 128), 5e-4),
        ("base", (768, 12, 12, 3072, 256), 3e-4),
        ("large", (1024, 24, 16, 4096, 512), 2e-4),
    ],
)
def test_a_preset_has_the_published_shape(name: str, shape: tuple[int, ...], rate: float) -> None:
    config = read_preset(name)
    backbone = config.model.backbone
    found = backbone.width, backbone.num_layers, backbone.num_heads, backbone.intermediate, backbone.max_tokens
    assert (found, config.optimizer.learning_rate) == (shape, rate)


def test_an_unknown_preset_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="preset 'huge' is unknown: choose one of tiny, minilm, base, large, text"):
        read_preset("huge")
    with pytest.raises(SystemExit, match=r"^2$"):
        parse_options(train.Options, [*REQUIRED, "--preset", "huge"])
    assert "huge" in capsys.readouterr().err


def test_a_copied_preset_is_a_file_for_config() -> None:
    for name in PRESETS:
        path = Path(train.__file__).parent / "presets" / f"{name}.yaml"
        by_file = parse_options(train.Options, [*REQUIRED, "--config", str(path)])
        assert by_file.training == parse_options(train.Options, [*REQUIRED, "--preset", name]).training


def test_every_setting_of_a_training_run_is_an_option_of_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        parse_options(tune.Options, ["--help"])
    text = capsys.readouterr().out
    absent = [name for name in settings_of(tune.Options) if f"--{name.replace('_', '-')}" not in text]
    assert absent == []
    assert {"workers", "zero_stage", "learning_rate", "gpu", "trials", "track"} <= set(settings_of(tune.Options))


def test_a_wrong_value_is_an_error_of_ours_and_a_wrong_type_one_of_usage(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^workers must be at least 1, not 0$"):
        parse_options(train.Options, [*REQUIRED, "--workers", "0"])
    with pytest.raises(ValueError, match="min_workers 3 must lie between 1 and workers 2"):
        parse_options(train.Options, [*REQUIRED, "--min-workers", "3"])
    with pytest.raises(SystemExit, match=r"^2$"):
        parse_options(train.Options, [*REQUIRED, "--workers", "two"])
    with pytest.raises(SystemExit, match=r"^2$"):
        parse_options(score.Options, ["--bundle", "b"])


def test_a_wrong_file_is_named_with_its_key(tmp_path: Path) -> None:
    path = tmp_path / "score.yaml"
    path.write_text("worker: 2\n")
    with pytest.raises(ValueError, match=r"score\.yaml: worker: unknown setting \(did you mean 'workers'\?\)"):
        parse_options(score.Options, ["--config", str(path)])
    with pytest.raises(OSError, match=r"No such file.*absent\.yaml"):
        parse_options(score.Options, ["--config", str(tmp_path / "absent.yaml")])


def test_a_deepspeed_file_is_an_option_and_its_content_a_key(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"stage": 2}}')
    assert parse_options(train.Options, [*REQUIRED, "--deepspeed", str(path)]).training.engine.stage == 2
    path.write_text("{")
    with pytest.raises(ValueError, match=r"ds\.json is not JSON"):
        parse_options(train.Options, [*REQUIRED, "--deepspeed", str(path)])
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"ds\.json must hold a JSON object, not list"):
        parse_options(train.Options, [*REQUIRED, "--deepspeed", str(path)])
    config = tmp_path / "settings.yaml"
    config.write_text("deepspeed:\n  zero_optimization: {stage: 3}\n")
    assert parse_options(train.Options, [*REQUIRED, "--config", str(config)]).training.engine.stage == 3
