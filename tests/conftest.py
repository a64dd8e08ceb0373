"""What all tests share: seeds, the folder of real data, one local Ray cluster per session."""

import os
import random
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xdist.scheduler import LoadScopeScheduling

REPO = Path(__file__).resolve().parent.parent
SEED = 20110612

# Set before Ray, torch or DeepSpeed are imported; worker processes inherit them.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    # DeepSpeed imports torch._inductor otherwise, some 5 CPU-s per process.
    "TORCHDYNAMO_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A checkpoint that is reported between a poll and a death is lost; the default polls every 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Otherwise Ray re-creates the environment in every worker when somebody starts the tests through uv.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


def pytest_configure() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class FilesAndRay(LoadScopeScheduling):  # type: ignore[misc]
    """Deals files to the parallel workers, so that the fixtures of a file are made once.

    All files that need Ray make one group, so that one cluster is started once.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "ray" if file_needs_ray(REPO / file) else file


@cache
def file_needs_ray(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    return "pytest.mark.ray" in text or "ray_cluster" in text


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return FilesAndRay(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Quick tests first, then those that need a cluster, then those that break one.

    Parallel workers begin with the cluster: its group is the longest.
    """

    def cost(item: pytest.Item) -> int:
        ray = item.get_closest_marker("ray") is not None or "ray_cluster" in getattr(item, "fixturenames", ())
        return 2 if item.get_closest_marker("faults") else int(ray)

    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not file_needs_ray(item.path))
    else:
        items.sort(key=cost)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 - for libraries that draw from the global state
    if torch := sys.modules.get("torch"):
        torch.manual_seed(SEED)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with the session's seed, new for every test."""
    return np.random.default_rng(SEED)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: `CLV_DATA`, or `../shared/data` beside the repository."""
    named = os.environ.get("CLV_DATA")
    folder = Path(named) if named else REPO.parent / "shared" / "data"
    if not folder.is_dir():
        if named:
            pytest.fail(f"CLV_DATA={named} is not a folder: name the one that holds online_retail_ii/, or unset it")
        pytest.skip(f"no real data in {folder}: set CLV_DATA to the folder that holds online_retail_ii/")
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster with 4 CPUs (more than some machines have: tasks then take turns) for the session."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=512 * 1024**2,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def text_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a small BERT with random weights, whose word pieces are letters, digits and a few words."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "today", "yesterday", "days", "months", "years"]
    words += ["ago", "items", "purchase", "return", "view"]
    words += [*letters, *(f"##{letter}" for letter in letters)]
    folder = tmp_path_factory.mktemp("text") / "checkpoint"
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(SEED)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=96, **shape)).save_pretrained(folder)
    return str(folder)
