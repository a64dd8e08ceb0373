"""Training settings: they read without torch, and a setting that would do nothing is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clv.train.config import TrainConfig, read_config
from clv.train.settings import overlay


def test_settings_are_imported_without_torch() -> None:
    code = "import sys, clv.train.config; assert not {'torch', 'ray', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_tokens": 20}, "batch_tokens 20 is less than one customer's max_tokens 64"),
        ({"prefetch": -1}, "prefetch must not be negative, not -1"),
        ({"layer_decay": 1.5}, r"layer_decay must lie in \(0, 1\], not 1.5"),
        (
            {"layer_decay": 0.5, "architecture": "mlp"},
            "layer_decay and unfreeze_epochs need a backbone of several layers",
        ),
        ({"engine": "torch", "zero_stage": 2}, "zero_stage 2 needs engine.kind deepspeed: plain torch would ignore it"),
        ({"zero_stage": 1, "offload_parameters": True}, "offload_parameters needs engine.zero_stage 3, not 1"),
        ({"compile": True, "zero_stage": 3}, "compile needs engine.zero_stage 0, 1 or 2"),
        ({"ema_decay": 1}, r"ema_decay must lie in \[0, 1\), not 1"),
        ({"peft_rank": 8}, "adapters.rank 8 needs adapters.method lora or adalora, not None"),
        ({"encoder": "text"}, "encoder text needs a pretrained text encoder: choose --preset text, or --pretrained"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overlay(TrainConfig(), given, "x.yaml")


def test_a_text_encoder_has_the_shape_of_its_checkpoint(tmp_path: Path, text_checkpoint: str) -> None:
    path = tmp_path / "text.yaml"
    path.write_text(f"encoder: text\npretrained: {text_checkpoint}\nmax_tokens: 40\nbackbone_dropout: 0.2\n")
    backbone = read_config(path).model.backbone
    assert (backbone.width, backbone.max_tokens, backbone.dropout) == (16, 40, 0.2)
    path.write_text(f"encoder: text\npretrained: {text_checkpoint}\nmax_tokens: 4000\n")
    with pytest.raises(ValueError, match="texts of 16 to 96 word pieces, not 4000"):
        read_config(path)


@pytest.mark.parametrize("encoder", ["events", "text"])
def test_a_relative_folder_of_a_checkpoint_becomes_absolute(
    encoder: str, text_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(text_checkpoint)
    monkeypatch.chdir(folder.parent)
    given = overlay(TrainConfig(), {"encoder": encoder, "pretrained": folder.name}, "test").with_checkpoint()
    assert given.model.backbone.pretrained == str(folder)
    hub = overlay(TrainConfig(), {"pretrained": "pkg://some_package"}, "test").with_checkpoint()
    assert hub.model.backbone.pretrained == "pkg://some_package"
