"""The files operations deploys: against Ray's own schemas, for typos that Ray ignores, and against each other."""

import importlib
import inspect
import json
import re
import shlex
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

REPO = Path(__file__).resolve().parent.parent
SERVE_CONFIGS = sorted(path for path in REPO.glob("serve_configs/*.yaml") if path.name != "rayservice.yaml")
# Read when Ray starts, on every node; see the Dockerfile.
SERVING = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "65536",
    "RAY_SERVE_HAPROXY_BINARY_PATH": "/home/ray/clv/serve_configs/haproxy.sh",
}

# Ray's schema leaves the provider open, and KubeRay's lies in the operator: the keys we use or may come to use.
AWS_PROVIDER = {"type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips", "security_group"}
RAY_SERVICE = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {
        *("serveConfigV2", "rayClusterConfig", "serveService", "upgradeStrategy", "excludeHeadPodFromServeSvc"),
        "rayClusterDeletionDelaySeconds",
    },
}
RAY_JOB = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {
        *("entrypoint", "runtimeEnvYAML", "jobId", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "suspend"),
        *("activeDeadlineSeconds", "backoffLimit", "submissionMode", "submitterPodTemplate", "rayClusterSpec"),
        *("entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "deletionStrategy", "metadata"),
    },
}
CLUSTER = {
    "": {
        *("rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions", "gcsFaultToleranceOptions"),
        *("headGroupSpec", "workerGroupSpecs", "headServiceAnnotations", "suspend", "upgradeStrategy"),
    },
    "headGroupSpec": {"rayStartParams", "template", "serviceType", "headService", "labels"},
    "workerGroupSpecs": {
        *("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "labels"),
        *("numOfHosts", "idleTimeoutSeconds", "scaleStrategy", "suspend"),
    },
}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((REPO / name).read_text(encoding="utf-8"))


def pins() -> dict[str, str]:
    """Package to version, of constraints.txt; of a package pinned by platform the first line."""
    lines = (REPO / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(";")[0].strip().split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {name.lower(): version for name, version in reversed(pairs)}


def project() -> dict[str, Any]:
    return tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def models_in(annotation: object) -> list[type[BaseModel]]:
    """The pydantic models an annotation allows: of `list[A]`, `A | dict | None` and so on."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in models_in(part)]


def unknown_keys(model: type[BaseModel], data: dict[str, Any], where: str = "") -> Iterator[str]:
    """Keys that a model does not know, at any depth: Serve drops them in silence."""
    fields = model.model_fields | {field.alias: field for field in model.model_fields.values() if field.alias}
    for key, value in data.items():
        place = f"{where}.{key}".lstrip(".")
        if key not in fields:
            yield place
            continue
        nested = models_in(fields[key].annotation)
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            if nested and isinstance(item, dict):
                yield from unknown_keys(nested[0], item, f"{place}[{index}]" if isinstance(value, list) else place)


def strangers(node: dict[str, Any], known: dict[str, set[str]]) -> set[str]:
    """Keys of a manifest that `known`, by place, does not name."""
    found: set[str] = set()
    for place, allowed in known.items():
        at: Any = node
        for key in filter(None, place.split(".")):
            at = at[key]
        for part in at if isinstance(at, list) else [at]:
            found |= {f"{place}.{key}".lstrip(".") for key in set(part) - allowed}
    return found


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The cluster that a RayService, RayJob or RayCluster starts."""
    spec: dict[str, Any] = manifest["spec"]
    return spec.get("rayClusterConfig") or spec.get("rayClusterSpec") or spec


def pod_specs(service: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = cluster_of(service)
    return [group["template"]["spec"] for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]]


def test_the_launcher_file_fits_rays_schema() -> None:
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    cluster = read("cluster.yaml")
    jsonschema.validate(cluster, schema)
    assert set(cluster["provider"]) <= AWS_PROVIDER
    with pytest.raises(jsonschema.ValidationError, match="max_workerz"):
        jsonschema.validate(cluster | {"max_workerz": 1}, schema)


def test_the_head_does_no_work_and_both_pools_may_shrink_to_nothing() -> None:
    cluster = read("cluster.yaml")
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    workers = {name: node for name, node in types.items() if name != cluster["head_node_type"]}
    assert {name: node["min_workers"] for name, node in workers.items()} == {"cpu": 0, "gpu": 0}
    assert workers["gpu"]["resources"]["GPU"] >= 1
    assert sum(node["max_workers"] for node in workers.values()) <= cluster["max_workers"]


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_node_starts_with_token_authentication_and_fast_serving(commands: str) -> None:
    started = [command for command in read("cluster.yaml")[commands] if "ray start" in command]
    assert len(started) == 1
    variables = dict(word.split("=", 1) for word in shlex.split(started[0].split("ray start")[0]))
    assert variables == {"RAY_AUTH_MODE": "token", "CLV_REGISTRY": "/mnt/clv/registry"} | SERVING


def test_the_image_sets_what_the_launcher_sets() -> None:
    dockerfile = (REPO / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.removeprefix("ENV ") for line in dockerfile.splitlines() if line.startswith("ENV ")]
    variables = dict(word.split("=", 1) for line in lines for word in shlex.split(line))
    assert {name: variables.get(name) for name in ["RAY_AUTH_MODE", *SERVING]} == {"RAY_AUTH_MODE": "token"} | SERVING


def test_there_are_a_local_and_a_production_serve_config() -> None:
    assert {"local.yaml", "production.yaml"} <= {path.name for path in SERVE_CONFIGS}


@pytest.mark.parametrize("path", SERVE_CONFIGS, ids=lambda path: path.name)
def test_a_serve_config_parses_and_has_no_key_that_serve_would_ignore(path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    ServeDeploySchema.model_validate(config)
    assert list(unknown_keys(ServeDeploySchema, config)) == []


@pytest.mark.parametrize("path", SERVE_CONFIGS, ids=lambda path: path.name)
def test_the_arguments_of_a_serve_config_are_those_of_its_builder(path: Path) -> None:
    for application in yaml.safe_load(path.read_text(encoding="utf-8"))["applications"]:
        module, _, name = application["import_path"].partition(":")
        builder = getattr(importlib.import_module(module), name)
        (arguments,) = models_in(next(iter(typing.get_type_hints(builder).values())))
        arguments.model_validate(application.get("args", {}))
        assert list(unknown_keys(arguments, application.get("args", {}))) == []


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ({"aplications": []}, "aplications"),
        ({"http_options": {"prot": 8000}}, "http_options.prot"),
        ({"applications": [{"route_prefx": "/"}]}, "applications[0].route_prefx"),
        ({"applications": [{"deployments": [{"num_replica": 1}]}]}, "applications[0].deployments[0].num_replica"),
        (
            {"applications": [{"deployments": [{"autoscaling_config": {"max_replica": 2}}]}]},
            "applications[0].deployments[0].autoscaling_config.max_replica",
        ),
        (
            {"applications": [{"deployments": [{"ray_actor_options": {"num_cpu": 2}}]}]},
            "applications[0].deployments[0].ray_actor_options.num_cpu",
        ),
    ],
)
def test_a_planted_typo_in_a_serve_config_is_found(config: dict[str, Any], place: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    assert list(unknown_keys(ServeDeploySchema, config)) == [place]


def test_the_kubernetes_service_embeds_the_production_config() -> None:
    """To mend: indent the text of production.yaml by four blanks below `serveConfigV2: |`."""
    production = (REPO / "serve_configs/production.yaml").read_text(encoding="utf-8")
    assert read("serve_configs/rayservice.yaml")["spec"]["serveConfigV2"] == production


def test_the_kubernetes_service_has_no_key_that_the_operator_would_refuse() -> None:
    service = read("serve_configs/rayservice.yaml")
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    assert strangers(service, RAY_SERVICE) | strangers(cluster_of(service), CLUSTER) == set()


@pytest.mark.parametrize(("name", "kind"), [("rayjob", "RayJob"), ("raycluster", "RayCluster")])
def test_the_manifests_of_jobs_have_no_key_that_the_operator_would_refuse(name: str, kind: str) -> None:
    manifest = read(f"ray_jobs/{name}.yaml")
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", kind)
    assert strangers(cluster_of(manifest), CLUSTER) == set()
    assert kind != "RayJob" or strangers(manifest, RAY_JOB) == set()
    assert strangers({"spec": {"entrypont": ""}}, RAY_JOB) == {"spec.entrypont"}


def test_a_job_of_its_own_starts_the_standing_clusters_machines() -> None:
    assert cluster_of(read("ray_jobs/rayjob.yaml")) == cluster_of(read("ray_jobs/raycluster.yaml"))


def test_the_entrypoint_of_the_manifest_is_a_command_that_train_takes() -> None:
    from ray_jobs import train
    from ray_jobs.options import parse_options

    python, dash, module, *arguments = shlex.split(read("ray_jobs/rayjob.yaml")["spec"]["entrypoint"])
    assert (python, dash, module) == ("python", "-m", "ray_jobs.train")
    options = parse_options(train.Options, arguments)
    assert options.cluster.min_workers == 4
    gpus = [
        group for group in cluster_of(read("ray_jobs/rayjob.yaml"))["workerGroupSpecs"] if group["groupName"] == "gpu"
    ]
    assert options.cluster.workers <= gpus[0]["maxReplicas"]
    assert options.training.engine.stage == 2


def test_pods_of_jobs_share_a_volume_and_take_secrets_by_reference() -> None:
    for spec in pod_specs(read("ray_jobs/rayjob.yaml")):
        (container,) = spec["containers"]
        assert {m["name"] for m in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
        assert "/mnt/clv" in {m["mountPath"] for m in container["volumeMounts"]}
        assert container["envFrom"] == [{"secretRef": {"name": "clv-object-store", "optional": True}}]
        assert "env" not in container  # nothing secret in the file
        gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert container["image"].endswith("-gpu") == gpu
        assert container["resources"]["limits"] == container["resources"]["requests"]


def test_the_kubernetes_service_mounts_what_it_names_and_takes_keys_from_a_secret() -> None:
    for spec in pod_specs(read("serve_configs/rayservice.yaml")):
        (container,) = spec["containers"]
        assert {m["name"] for m in container["volumeMounts"]} <= {volume["name"] for volume in spec["volumes"]}
        variables = {entry["name"]: entry for entry in container["env"]}
        assert {name: variables[name]["value"] for name in SERVING} == SERVING
        # As a folder, since that follows changes of the secret; a file or a variable does not.
        (keys,) = [volume for volume in spec["volumes"] if "secret" in volume]
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == keys["name"]]
        assert Path(variables["CLV_API_KEYS_FILE"]["value"]).parent == Path(mount["mountPath"])
        assert "subPath" not in mount
        assert variables["CLV_STORE"]["value"].startswith("redis://")


def test_versions_are_the_same_everywhere() -> None:
    service, cluster, version = read("serve_configs/rayservice.yaml"), read("cluster.yaml"), project()["version"]
    jobs = read("ray_jobs/rayjob.yaml")
    assert {cluster_of(one)["rayVersion"] for one in (service, jobs)} == {pins()["ray"]}
    images = {container["image"] for spec in pod_specs(service) for container in spec["containers"]}
    assert images == {cluster["docker"]["image"]}
    assert cluster["docker"]["image"].endswith(f"/clv:{version}")
    gpu = cluster["available_node_types"]["gpu"]["docker"]["worker_image"]
    assert gpu == f"{cluster['docker']['image']}-gpu"
    assert {c["image"] for spec in pod_specs(jobs) for c in spec["containers"]} == {cluster["docker"]["image"], gpu}
    dockerfile = (REPO / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"docker build -t (\S+)", dockerfile)) == {cluster["docker"]["image"], gpu}
    torch = pins()["torch"]
    assert f"ARG TORCH={torch}\n" in dockerfile
    assert re.findall(r"TORCH=([\d.]+)\+cu", dockerfile) == [torch.split("+")[0]]


def test_every_direct_dependency_is_pinned() -> None:
    extras = [name for group in project()["optional-dependencies"].values() for name in group]
    wanted = {re.split(r"[\[<>=!~ ;]", name)[0].lower() for name in [*project()["dependencies"], *extras]}
    assert {name.replace("_", "-") for name in wanted} - {name.replace("_", "-") for name in pins()} == set()


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (REPO / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert "constraints.txt" in names
    assert {name for name in names if not (REPO / name).exists()} == set()
    ignored = (REPO / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{name}" for name in names} == {line for line in ignored if line.startswith("!")}


def test_the_jobs_environment_has_only_keys_that_ray_knows() -> None:
    from ray.runtime_env import RuntimeEnv

    environment = read("ray_jobs/runtime_env.yaml")
    assert set(environment) <= RuntimeEnv.known_fields
    RuntimeEnv(**environment)
