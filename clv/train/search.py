"""What is tuned, between which bounds, and how a trial's choice becomes a training configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from clv.train.config import TrainConfig
from clv.train.settings import overlay


@dataclass(frozen=True)
class SearchRange:
    """Floats between two bounds; `log`: drawn evenly in their logarithm."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[Any, ...]


SIZES = {"2x64": (64, 2, 2), "2x128": (128, 2, 4), "4x128": (128, 4, 4), "4x256": (256, 4, 4), "6x384": (384, 6, 12)}
SearchName = Literal["learning_rate", "batch_size", "epochs", "weight_decay", "dropout", "size"]
NAMES: tuple[SearchName, ...] = get_args(SearchName)


def space(names: Sequence[str], config: TrainConfig) -> dict[str, SearchRange | Choice]:
    """Bounds around `config` of the settings to tune. ValueError for an unknown name, or a size that is given."""
    if not names or (unknown := sorted(set(names) - set(NAMES))):
        wrong = f"setting {unknown[0]!r} cannot be tuned" if names else "nothing is to be tuned"
        raise ValueError(f"{wrong}: choose among {', '.join(NAMES)}")
    if "size" in names and (source := config.model.backbone.pretrained):
        raise ValueError(f"size cannot be tuned: the pretrained backbone {source!r} has its own; leave size out")
    rate, batch = config.optimizer.learning_rate, config.batch_size
    known: dict[str, SearchRange | Choice] = {
        "learning_rate": SearchRange(rate / 4, rate * 4, log=True),
        "batch_size": Choice(tuple(sorted({max(1, batch // 2), batch, batch * 2}))),
        "epochs": Choice(tuple(sorted({max(1, config.epochs // 2), config.epochs, config.epochs * 2}))),
        "weight_decay": SearchRange(1e-3, 0.2, log=True),
        "dropout": SearchRange(0.0, 0.5),
        "size": Choice(tuple(SIZES)),
    }
    return {name: known[name] for name in names}


def chosen(config: TrainConfig, setting: Mapping[str, Any]) -> TrainConfig:
    """`config` with a trial's choice; `dropout` is that of the features' part and of the heads."""
    given = {name: value for name, value in setting.items() if name != "size"}
    if "size" in setting:
        width, layers, heads = SIZES[setting["size"]]
        given |= {"width": width, "num_layers": layers, "num_heads": heads, "intermediate": 4 * width}
    return overlay(config, given, "trial")
