"""AdaLoRA's rank budget: how it falls, which ranks it prunes as peft does, and that pruned ranks stay pruned."""

from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn

from clv.models.adapters import adalora

peft = pytest.importorskip("peft")

RANK = 2  # of every matrix on average in the end


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return out


def make() -> Layers:
    """Three matrices with three ranks each, of which two remain on average."""
    torch.manual_seed(0)
    model = Layers()
    config = peft.AdaLoraConfig(
        init_r=adalora.initial_rank(RANK), total_step=1, target_modules=["first", "second", "third"]
    )
    peft.inject_adapter_in_model(config, model)
    adalora.register_importance(model, RANK)
    for name, p in model.named_parameters():
        if ".lora_E." in name:
            nn.init.normal_(p)
    return model


@pytest.fixture
def layers() -> Layers:
    return make()


def learn(model: nn.Module, seed: int) -> None:
    """Computes the gradients of one step."""
    torch.manual_seed(seed)
    model.zero_grad()
    model(torch.randn(16, 6)).square().sum().backward()


def values(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for name, p in model.named_parameters() if ".lora_E." in name])


def test_the_budget_falls_by_a_cubic_law_within_the_first_epoch() -> None:
    assert [adalora.budget(epochs, 180, 120) for epochs in (0.0, 0.1, 0.5, 0.9, 7.0)] == [180, 180, 120, 120, 120]
    assert adalora.budget(0.3, 180, 120) == 120 + int(60 * 0.5**3)
    assert adalora.initial_rank(2) == 3
    assert adalora.initial_rank(1) == 2


def test_the_ranks_of_least_importance_are_pruned_as_in_peft(layers: Layers) -> None:
    config = peft.AdaLoraConfig(
        init_r=3,
        target_r=RANK,
        total_step=9,
        beta1=adalora.SMOOTHING,
        beta2=adalora.SMOOTHING,
        target_modules=["first"],
    )
    from peft.tuners.adalora.layer import RankAllocator

    reference: Any = RankAllocator(layers, config, "default")
    for step in range(5):
        learn(layers, step)
        adalora.update_importance(layers)
        reference.update_ipt(layers)
    before = values(layers)
    adalora.prune(layers, 0.3)
    (kept,) = (values(layers) != 0).nonzero(as_tuple=True)
    assert len(kept) == adalora.budget(0.3, 9, 6) == 6
    pattern = reference.mask_to_budget(layers, 6)
    assert kept.tolist() == [i for i, stays in enumerate(chain.from_iterable(pattern.values())) if stays]
    torch.testing.assert_close(values(layers)[kept], before[kept])


def test_the_remaining_ranks_are_final_once_the_budget_is_reached(layers: Layers) -> None:
    kept = []
    for step, epochs in enumerate([0.05, 0.11, 0.5, 0.6, 2.0]):
        learn(layers, step)
        adalora.update_importance(layers)
        adalora.prune(layers, epochs)
        kept.append((values(layers) != 0).tolist())
        with torch.no_grad():
            for name, p in layers.named_parameters():
                # As if the optimizer revived pruned ranks and the kept ones lost their importance.
                p.add_(1.0) if ".lora_E." in name else p.mul_(-0.7)
    assert [sum(step) for step in kept] == [9, 8, 6, 6, 6]
    assert kept[2] == kept[3] == kept[4]


def test_orthonormal_rows_and_columns_have_no_penalty(layers: Layers) -> None:
    found = [p for name, p in layers.named_parameters() if ".lora_A." in name or ".lora_B." in name]
    norms = []
    for p in found:
        gram = p @ p.T if len(p) == 3 else p.T @ p
        norms.append(torch.linalg.matrix_norm(gram - torch.eye(3)))
    assert adalora.orthogonality_penalty(layers).item() == pytest.approx(sum(norms).item() / 6)
    for p in found:
        nn.init.orthogonal_(p)
    assert adalora.orthogonality_penalty(layers).item() == pytest.approx(0, abs=1e-5)


def test_averaged_weights_are_zero_at_pruned_ranks(layers: Layers) -> None:
    learn(layers, 0)
    adalora.update_importance(layers)
    before = {name: t.clone() for name, t in layers.state_dict().items()}
    adalora.prune(layers, 1.0)
    after = layers.state_dict()
    average = {name: (before[name] + t) / 2 if t.is_floating_point() else t for name, t in after.items()}
    found = adalora.without_pruned_ranks(average)
    assert found.keys() == after.keys()
    for name, t in found.items():
        assert torch.equal(t, after[name]), name


def test_the_importance_of_the_ranks_is_part_of_the_weights(layers: Layers) -> None:
    for step in range(5):
        learn(layers, step)
        adalora.update_importance(layers)
    resumed = make()
    resumed.load_state_dict(layers.state_dict())
    for epochs in (0.3, 0.6):
        for model in (layers, resumed):
            adalora.prune(model, epochs)
        assert torch.equal(values(resumed), values(layers))
    adalora.prune(fresh := make(), 0.3)
    assert not torch.equal(values(fresh) != 0, values(layers) != 0)
