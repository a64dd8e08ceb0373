"""The rollout job's command line; tests/serve/rollout has the rollout itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from clv.serve.rollout.policy import RolloutPolicy
from ray_jobs import deploy
from tests.ray_jobs.flags import options_of

SERVICE = {"registry": "r", "url": "http://127.0.0.1:1"}


def test_every_field_of_the_policy_is_an_option() -> None:
    found = options_of(deploy.Options, **SERVICE, canary_share=0.1, candidate_s=5, min_errors=9)
    assert found.policy == RolloutPolicy(canary_share=0.1, candidate_s=5, min_errors=9)
    with pytest.raises(ValueError, match="a canary and a shadow are two rollouts"):
        options_of(deploy.Options, **SERVICE, canary_share=0.1, shadow_share=0.1)


@pytest.mark.parametrize("given", [{}, {"bundle": Path("b"), "version": "v"}])
def test_a_bundle_or_a_version_is_needed(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="give either --bundle or --version"):
        deploy.run(options_of(deploy.Options, **SERVICE, **given))
