"""The customer model: a fresh one returns its start curves; heads of an ensemble learn each by itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clv.models import losses
from clv.models.config import BackboneConfig, LossConfig, ModelConfig
from clv.models.heads import ensemble_mean
from clv.models.model import CustomerModel

BACKBONE = BackboneConfig(width=8, num_layers=1, num_heads=1, intermediate=8, dropout=0.0)
CONFIG = ModelConfig(backbone=BACKBONE, hidden=8, dropout=0.0)


def test_a_fresh_model_returns_the_mean_of_the_btyd_model_and_the_population_average(shop) -> None:
    batch = shop.samples.batch(np.arange(40))
    out = CustomerModel(CONFIG, shop.space, 2).eval()(batch)
    hazard, repeats, value = batch.population_average.unbind(1)
    torch.testing.assert_close(out.hazard, (batch.base_hazard + hazard) / 2, rtol=1e-5, atol=0)
    torch.testing.assert_close(out.repeats, (batch.base_repeats + repeats) / 2, rtol=1e-5, atol=0)
    torch.testing.assert_close(out.value, (batch.base_value + value) / 2, rtol=1e-5, atol=0)


@pytest.mark.parametrize("start", ["btyd", "population_average"])
def test_a_model_with_one_start_curve_returns_that_curve(shop, start: str) -> None:
    batch = shop.samples.batch(np.arange(10))
    out = CustomerModel(replace(CONFIG, start_curves=start), shop.space, 2).eval()(batch)
    torch.testing.assert_close(out.value, batch.start_curves[start][2], rtol=1e-5, atol=0)


def test_the_ensemble_is_the_mean_of_heads_that_learn_each_by_itself(shop) -> None:
    torch.manual_seed(0)
    model = CustomerModel(replace(CONFIG, ensemble_size=3), shop.space, 2)
    torch.manual_seed(0)
    alone = CustomerModel(CONFIG, shop.space, 2)
    for name, tensor in alone.state_dict().items():  # the first head and the backbone have the same names and weights
        assert torch.equal(tensor, model.state_dict()[name]), name
    with torch.no_grad():
        for number, head in enumerate(model.further_heads):
            head.heads["btyd"].corrections.bias.fill_(0.1 * (number + 1))
    batch = shop.samples.batch(np.arange(20))
    out, states = model(batch), model.states(batch)
    single = [ensemble_mean(head.outputs(states, batch)) for head in (model, *model.further_heads)]
    assert len(out.ensemble) == 6
    torch.testing.assert_close(out.value, torch.stack([s.value for s in single]).mean(0))
    assert not torch.allclose(single[1].value, single[2].value)
    assert torch.equal(model.encode(batch), out.z)
    weight = model.further_heads[1].wide[0].weight
    (together,) = torch.autograd.grad(losses.total(out, batch.targets, LossConfig())[0], weight)
    (by_itself,) = torch.autograd.grad(losses.total(single[2], batch.targets, LossConfig())[0], weight)
    torch.testing.assert_close(3 * together, by_itself)


def test_the_customer_vector_uses_the_mean_state_the_newest_state_and_the_features(shop) -> None:
    model = CustomerModel(CONFIG, shop.space, 2).eval()
    torch.nn.init.normal_(model.pool[-1].weight)
    batch = shop.samples.batch(np.arange(12))
    states = torch.randn(*batch.mask.shape, 8)
    with torch.no_grad():
        z = model.customer_vector(states, batch)
        for row in range(12):
            own = states[row, : int(batch.mask[row].sum())]
            wanted = model.pool(torch.cat([own.mean(0), own[-1]])) + model.wide(batch.wide[row])
            torch.testing.assert_close(z[row], wanted.relu(), atol=1e-5, rtol=1e-5)


def test_a_model_without_the_sequence_ignores_the_tokens(shop) -> None:
    model = CustomerModel(replace(CONFIG, use_sequence=False), shop.space, 2).eval()
    batch = shop.samples.batch(np.arange(5))
    assert model.states(batch) is None
    shuffled = replace(batch, scalars=batch.scalars.flip(0), codes=batch.codes.flip(0), mask=batch.mask.flip(0))
    assert torch.equal(model.encode(batch), model.encode(shuffled))
