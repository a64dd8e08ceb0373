"""Serve reads past keys it does not know; these files must not hold any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    LoggingConfig,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from clv.serve.deployments import AppArgs
from clv.serve.http.security import is_loopback

FILES = sorted((Path(__file__).parents[2] / "serve_configs").glob("*.yaml"))
SERVE_FILES = [path for path in FILES if "applications" in yaml.safe_load(path.read_text())]


def unknown(found: dict[str, Any], model: type[BaseModel], place: str) -> list[str]:
    return [f"{place}.{key}" for key in found if key not in model.model_fields]


def unknown_keys(config: dict[str, Any]) -> list[str]:
    """Every key of a Serve file that Serve would ignore."""
    found = unknown(config, ServeDeploySchema, "")
    found += unknown(config.get("http_options", {}), HTTPOptionsSchema, ".http_options")
    found += unknown(config.get("logging_config", {}), LoggingConfig, ".logging_config")
    for application in config["applications"]:
        found += unknown(application, ServeApplicationSchema, ".applications")
        for deployment in application.get("deployments", []):
            found += unknown(deployment, DeploymentSchema, ".deployments")
            found += unknown(deployment.get("autoscaling_config", {}), AutoscalingConfig, ".autoscaling_config")
            found += unknown(deployment.get("ray_actor_options", {}), RayActorOptionsSchema, ".ray_actor_options")
    return found


@pytest.fixture(params=SERVE_FILES, ids=lambda path: path.name)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return yaml.safe_load(request.param.read_text())


def test_serve_knows_every_key(config: dict[str, Any]) -> None:
    assert unknown_keys(config) == []
    ServeDeploySchema.model_validate(config)


def test_a_mistyped_key_is_found(config: dict[str, Any]) -> None:
    config["applications"][0]["deployments"][0]["max_queued_request"] = 3
    config["http_options"]["hots"] = "x"
    assert unknown_keys(config) == [".http_options.hots", ".deployments.max_queued_request"]


def test_the_application_takes_the_arguments(config: dict[str, Any]) -> None:
    application = config["applications"][0]
    assert application["import_path"] == "clv.serve.app:build_app"
    AppArgs.model_validate(application["args"])
    with pytest.raises(ValidationError, match="Extra inputs"):
        AppArgs.model_validate(application["args"] | {"keys": "x"})


def test_queues_are_bounded_and_the_deadline_comes_before_the_proxys(config: dict[str, Any]) -> None:
    application = config["applications"][0]
    args = AppArgs.model_validate(application["args"])
    (deployment,) = application["deployments"]
    assert 0 < deployment["max_ongoing_requests"] <= deployment["max_queued_requests"]
    assert args.deadline_s < config["http_options"]["request_timeout_s"]
    assert args.cpu_threads == deployment["ray_actor_options"]["num_cpus"]


def test_no_access_log_is_written_since_addresses_hold_ids(config: dict[str, Any]) -> None:
    assert config["logging_config"]["enable_access_log"] is False


def test_the_local_file_stays_on_loopback_and_production_scales() -> None:
    local, production = (
        yaml.safe_load((FILES[0].parent / name).read_text()) for name in ("local.yaml", "production.yaml")
    )
    assert is_loopback(local["http_options"]["host"])
    (deployment,) = production["applications"][0]["deployments"]
    assert deployment["autoscaling_config"]["min_replicas"] >= 2
    assert deployment["backpressure_config"] == {"status_code": 429, "retry_after_s": 1}
    assert (
        deployment["graceful_shutdown_timeout_s"]
        >= AppArgs.model_validate(production["applications"][0]["args"]).deadline_s
    )


def test_arguments_win_over_the_environment_and_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"CLV_BUNDLE": "b", "CLV_STORE": "s", "CLV_API_KEYS": "not read here"}
    from_env = AppArgs.complete(AppArgs(), env)
    assert (from_env.bundle, from_env.registry, from_env.store) == (tmp_path / "b", None, str(tmp_path / "s"))
    given = AppArgs.complete(AppArgs(registry=Path("r"), store="t"), env)
    assert (given.bundle, given.registry, given.store) == (None, tmp_path / "r", str(tmp_path / "t"))
    shared = AppArgs.complete(AppArgs(bundle=Path("b")), env | {"CLV_STORE": "redis://cache:6379/2"})
    assert shared.store == "redis://cache:6379/2"


@pytest.mark.parametrize("env", [{}, {"CLV_BUNDLE": "b", "CLV_REGISTRY": "r"}])
def test_exactly_one_source_of_the_bundle_is_needed(env: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="either a bundle"):
        AppArgs.complete(AppArgs(), env)
