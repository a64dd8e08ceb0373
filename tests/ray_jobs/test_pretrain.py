"""An encoder from a job, and a training that starts from it."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clv import bundle as bundles
from clv.models.pretraining import transfer
from ray_jobs import pretrain, train
from tests.ray_jobs.flags import options_of

pytestmark = pytest.mark.ray

CUT = "2024-01-01"
SMALL = {"architecture": "gru", "epochs": 1, "samples_per_epoch": 128, "batch_size": 64, "seed": 5}


@pytest.fixture(scope="module")
def encoder(histories: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[Path, str]:
    """An encoder that two workers pretrained, and what the job logged."""
    out, text = tmp_path_factory.mktemp("pretrained") / "encoder", StringIO()
    with redirect_stdout(text):
        pretrain.run(options_of(pretrain.Options, histories=histories, out=out, origin=CUT, workers=2, **SMALL))
    return out, text.getvalue()


def test_two_workers_pretrain_an_encoder(encoder: tuple[Path, str]) -> None:
    out, text = encoder
    facts = transfer.read_config(out)
    assert [one["dataset"] for one in facts["seen"]] == ["simulated"]
    assert f"wrote encoder {facts['sha256'][:12]}" in text
    (row,) = facts["history"]
    assert {"masked", "next_event", "coles"} <= set(row)
    assert json.loads((out.with_name("encoder.run") / "run.json").read_text())["encoder"] == facts["sha256"]


@pytest.mark.slow
def test_training_starts_from_a_pretrained_encoder(histories: Path, tmp_path: Path, encoder: tuple[Path, str]) -> None:
    out, facts = encoder[0], transfer.read_config(encoder[0])
    with redirect_stdout(text := StringIO()):
        # At a rate of nothing the weights of the bundle are those that training started from.
        options = options_of(
            train.Options, histories=histories, out=tmp_path / "bundle", origin=CUT, workers=1, pretrained=str(out),
            learning_rate=1e-30, **SMALL,
        )  # fmt: skip
        train.run(options)
    assert f"pretrained encoder {facts['sha256'][:12]}: whole backbone loaded; it knows 4 of 4 types" in text.getvalue()
    weights = bundles.load(tmp_path / "bundle").weights
    taught = load_file(out / transfer.WEIGHTS)
    names = [name for name in taught if name.startswith("backbone.")]
    assert len(names) > 5
    for name in names:
        assert torch.allclose(torch.as_tensor(weights[name]), taught[name], atol=1e-7), name


def test_an_encoder_that_has_seen_the_held_out_window_is_refused(histories: Path, tmp_path: Path) -> None:
    from clv.cluster.training import read_dataset
    from clv.data.dataset import PreparedDataset
    from clv.models.pretraining.pretrainer import Objectives
    from clv.train import pretraining

    config = options_of(pretrain.Options, histories=histories, out=tmp_path / "encoder", **SMALL).training
    plan = pretraining.plan(
        [read_dataset(histories)], [PreparedDataset.open(histories).origin(None)], Objectives(), config
    )
    seen = [transfer.SeenDataset("simulated", plan.grounds[0].cutoff)]
    transfer.save(tmp_path / "encoder", config.model.backbone, plan.space, plan.model(config).state_dict(), seen, {})
    with pytest.raises(ValueError, match=r"has seen simulated until 2024-04-01, after .*run ray_jobs.pretrain with"):
        train.run(
            options_of(
                train.Options,
                histories=histories,
                out=tmp_path / "b",
                origin=CUT,
                pretrained=str(tmp_path / "encoder"),
                **SMALL,
            )
        )
