"""Pretraining objectives: masks and slices, losses by hand, and that each objective can be learned."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clv.models.config import BackboneConfig
from clv.models.inputs.batch import Samples
from clv.models.pretraining import pretrainer
from clv.models.pretraining.pretrainer import EventSamples, NextEvents, Objectives, Pretrainer
from clv.models.pretraining.transfer import joint_space

TINY = BackboneConfig(width=16, num_layers=1, num_heads=2, intermediate=32, max_tokens=12, dropout=0.0)
EVERYTHING = Objectives.from_names("masked", "next_event", "coles", "autoencoder")


@pytest.fixture
def samples(shop) -> EventSamples:
    num = len(shop.samples)
    rng = np.random.default_rng(0)
    following = NextEvents(*(rng.integers(0, 3, num) for _ in range(3)), known=rng.random(num) < 0.7)
    return EventSamples.from_tokens(shop.samples.tokens, following, EVERYTHING)


@pytest.fixture
def model(shop) -> Pretrainer:
    return Pretrainer(TINY, joint_space([shop.space]), EVERYTHING).eval()


def test_an_unknown_objective_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'guess' is unknown: choose among masked, next_event, coles, autoencoder"):
        Objectives.from_names("masked", "guess")
    with pytest.raises(ValueError, match="no objective is given"):
        Objectives.from_names()


def test_masked_tokens_are_at_least_one_and_about_the_given_share() -> None:
    lengths = torch.tensor([1, 2, 40, 40])
    mask = (torch.arange(40) < lengths.unsqueeze(1)).float().repeat(200, 1)
    hidden = pretrainer.masked_tokens(mask, 0.2, np.random.default_rng(1))
    assert (hidden <= mask).all()
    assert (hidden.sum(1) >= 1).all()
    long = hidden[mask.sum(1) == 40]
    assert 0.15 < float(long.mean()) < 0.23
    runs = ((long[:, 1:] == 1) & (long[:, :-1] == 0)).sum() + long[:, 0].sum()
    assert 1.6 < float(long.sum() / runs) < 2.8  # tokens of a run, two on average


def test_slices_are_runs_of_a_rows_own_tokens_and_shorter_than_it(shop) -> None:
    samples: Samples = shop.samples
    rows = np.flatnonzero(samples.lengths >= 4)[:20]
    drawn = pretrainer.random_slices(samples, rows, np.random.default_rng(2))
    for i, row in enumerate(rows):
        own = samples.tokens.scalars[samples.tokens.offsets[row] : samples.tokens.offsets[row + 1]]
        num = int(drawn.mask[i].sum())
        part = drawn.scalars[i, :num].numpy()
        assert 1 <= num < len(own)
        assert any(np.array_equal(part, own[k : k + num]) for k in range(len(own) - num + 1))


def test_the_prediction_of_a_masked_token_does_not_depend_on_it(samples, model) -> None:
    batch = samples.batch(np.flatnonzero(samples.lengths >= 5)[:8], seed=3)
    assert model.masked_decoder is not None

    def decoded(given) -> torch.Tensor:
        x = model.embedding(given)
        hidden = given.masked.unsqueeze(-1)
        states = model.backbone(x * (1 - hidden) + model.mask_vector * hidden, given.mask)
        return model.masked_decoder(states)[0]

    noise = torch.randn_like(batch.scalars) * batch.masked.unsqueeze(-1)
    assert torch.equal(decoded(batch), decoded(replace(batch, scalars=batch.scalars + noise)))
    seen = torch.randn_like(batch.scalars) * (1 - batch.masked).unsqueeze(-1)
    assert not torch.allclose(decoded(batch), decoded(replace(batch, scalars=batch.scalars + seen)))


def test_the_hazards_of_the_next_event_are_a_distribution_over_bins() -> None:
    hazard = torch.randn(1, 6).repeat(6, 1)
    flat = [torch.zeros(6, 1), torch.zeros(6, 1), hazard]
    events = torch.tensor(
        [[0, 0, wait, 1] for wait in range(5)] + [[0, 0, 5, 0]]
    )  # the last: no event within five bins
    chance = torch.exp(-pretrainer.next_event_nll(flat, events))
    assert float(chance.sum()) == pytest.approx(1.0, abs=1e-6)


def test_coles_is_the_papers_loss_on_a_case_by_hand() -> None:
    first = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), dim=1)
    second = F.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.2]]), dim=1)
    distance = torch.cdist(first, second)
    by_hand = distance.diagonal() ** 2 + (0.5 - distance[[0, 1], [1, 0]]).clamp(min=0) ** 2
    assert torch.allclose(pretrainer.coles_loss(first, second), by_hand, atol=1e-6)
    assert by_hand[0] > distance[0, 0] ** 2  # the slice of the second customer lies within the margin


def test_the_loss_is_a_sum_over_rows_however_they_are_split(samples, model) -> None:
    rows = np.arange(12)
    whole = model(samples.batch(rows, seed=4))
    assert float(whole[1]) == 12.0
    parts = model.losses(samples.batch(rows, seed=4))
    assert float(whole[0].detach()) == pytest.approx(
        float(sum(part.sum() for part in parts.values()).detach()), rel=1e-6
    )
    assert {name: tuple(part.shape) for name, part in parts.items()} == dict.fromkeys(parts, (12,))
    assert set(parts) == {"masked", "next_event", "coles", "autoencoder"}


@pytest.mark.parametrize("objective", ["masked", "next_event", "coles", "autoencoder"])
def test_every_objective_can_be_learned_alone(shop, samples, objective: str) -> None:
    torch.manual_seed(0)
    wanted = Objectives.from_names(objective)
    model = Pretrainer(TINY, joint_space([shop.space]), wanted)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batch = replace(samples, objectives=wanted).batch(np.arange(48), seed=5)
    before = float(model(batch)[0].detach())
    for _ in range(30):
        optimizer.zero_grad()
        model(batch)[0].backward()
        optimizer.step()
    assert float(model(batch)[0].detach()) < 0.9 * before
    assert all(p.grad is not None for n, p in model.named_parameters() if p.requires_grad), objective
