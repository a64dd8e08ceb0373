"""Every shell and Python block of README.md and docs/ runs as pasted, and its commands and addresses exist.

The blocks of a page run in order, in one folder and one Python namespace. A comment on the line before a fence excepts
a block: `<!-- not run: REASON -->` from running at all, `<!-- slow: REASON -->` from the everyday tests. A YAML block
with a title is saved under that name.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_jobs.options import parse_options
from tests.docs.blocks import ALL_BLOCKS, PAGES, REPO, Block, blocks, commands, starting_files

SHELL = [block for block in ALL_BLOCKS if block.language == "bash"]
PYTHON = [block for block in ALL_BLOCKS if block.language == "python"]
RUNNABLE = [page for page in PAGES if any(b.language in {"bash", "python"} and b.mark is None for b in blocks(page))]
SLOW = [page for page in PAGES if any(block.slow for block in blocks(page))]
ENVIRONMENT = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONWARNINGS": "ignore"}
CUT = "2024-04-01"


def page_name(page: Path) -> str:
    """The path of a page in the repository."""
    return str(page.relative_to(REPO))


def shell(code: str, folder: Path) -> None:
    """Runs shell code in a folder; fails with its output where a command fails."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small shop's orders.csv and shop.yaml, its histories and a bundle of a few training steps."""
    import clv
    from clv.simulate.small import simulate
    from clv.train.config import TrainConfig

    folder = tmp_path_factory.mktemp("documentation")
    log = simulate(150, "2023-01-01", "2024-07-01", seed=3).events.to_pandas()
    log = log[log["event_type"] == "purchase"]
    theirs = {"customer_id": "buyer", "event_time": "paid_at", "order_id": "order", "item_id": "sku"}
    theirs |= {"quantity": "qty", "amount": "total"}
    orders = log[list(theirs)].rename(columns=theirs)
    orders.to_csv(folder / "orders.csv", index=False)
    source = {"path": "orders.csv", "columns": theirs}
    spec = {"name": "shop", "timezone": "Europe/Berlin", "currency": "EUR", "events": [source]}
    (folder / "shop.yaml").write_text(yaml.safe_dump(spec))
    shell("python -m ray_jobs.prepare --dataset shop.yaml --out out/histories --engine here", folder)
    config = TrainConfig(epochs=1, samples_per_epoch=64, batch_size=64, num_origins=4)
    backbone = replace(config.model.backbone, architecture="gru")
    config = replace(config, model=replace(config.model, backbone=backbone))
    facts = {"currency": "EUR", "timezone": "Europe/Berlin", "name": "shop"}
    clv.fit(orders, theirs, origin=CUT, config=config, **facts).save(folder / "out/bundle")
    return folder


def run_page(page: Path, request: pytest.FixtureRequest, folder: Path, *, slow: bool) -> None:
    """Runs the blocks of a page in `folder`, the slow ones only if asked; a skipped job's output is copied instead."""
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    for name in ("ray_jobs", "serve_configs", "docs", "examples"):
        (folder / name).symlink_to(REPO / name)
    for name in starting_files(page):
        copy(request.getfixturevalue("prepared"), folder, name)
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {"__name__": "pasted"}
    for block in blocks(page):
        if block.language == "yaml" and block.title:
            (folder / block.title).write_text(block.code, encoding="utf-8")
        elif block.skipped or block.language not in {"bash", "python"}:
            continue
        elif block.slow and not slow:
            for output in re.findall(r"--out (\S+)", block.code):
                copy(request.getfixturevalue("prepared"), folder, output)
        elif block.language == "bash":
            shell(block.code, folder)
        else:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block.code, block.name, "exec"), namespace)


def copy(prepared: Path, folder: Path, name: str) -> None:
    """Copies a file or folder of the prepared shop, where it holds one of this name."""
    source, target = prepared / name, folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.is_file():
        shutil.copy(source, target)


@pytest.mark.parametrize("page", RUNNABLE, ids=page_name)
def test_the_blocks_of_a_page_run_as_pasted(page: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run_page(page, request, tmp_path, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=page_name)
def test_the_slow_blocks_of_a_page_run_as_pasted(page: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run_page(page, request, tmp_path, slow=True)


def test_a_block_that_is_not_run_has_a_reason() -> None:
    marks = [block for block in SHELL + PYTHON if block.mark is not None]
    assert len(marks) > 5
    wrong = [b.name for b in marks if not re.fullmatch(r"(not run|slow): \w+ .+", str(b.mark))]
    assert wrong == []


def job_commands() -> list[Any]:
    """Every `python -m ray_jobs.VERB ...` of the pages, as (verb, arguments)."""
    found = []
    for block in SHELL:
        for words in commands(block.code):
            for word, rest in zip(words, range(1, len(words) + 1), strict=True):
                if word.startswith("ray_jobs."):
                    found.append(pytest.param(word.split(".")[1], words[rest:], id=f"{block.name}-{word}"))
    return found


@pytest.mark.parametrize(("verb", "arguments"), job_commands())
def test_a_job_accepts_the_arguments_that_a_page_gives_it(verb: str, arguments: list[str]) -> None:
    options = importlib.import_module(f"ray_jobs.{verb}").Options
    if "--config" in arguments:
        # The file is written by an earlier block, which need not have run.
        at = arguments.index("--config")
        arguments = arguments[:at] + arguments[at + 2 :]
    parse_options(options, arguments)


def test_every_make_target_of_the_pages_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"`make ([a-z-]+)`|^ *make ([a-z-]+)", text, re.MULTILINE))
    assert {a or b for a, b in named} <= targets


def test_every_benchmark_that_the_pages_name_exists() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in [*PAGES, REPO / "benchmarks/README.md"])
    named = set(re.findall(r"python -m (benchmarks\.\w+)", text))
    assert len(named) > 3
    assert {name for name in named if importlib.util.find_spec(name) is None} == set()


@pytest.mark.parametrize("block", PYTHON, ids=[block.name for block in PYTHON])
def test_a_python_block_compiles_and_imports_names_that_exist(block: Block) -> None:
    compile(block.code, block.name, "exec")
    for module, names in re.findall(r"^from (clv\S*) import (.+)$", block.code, re.MULTILINE):
        loaded = importlib.import_module(module)
        known = {*dir(loaded), *(found.name for found in pkgutil.iter_modules(getattr(loaded, "__path__", [])))}
        assert {name.split(" as ")[0] for name in names.split(", ")} <= known


@pytest.mark.parametrize("block", [b for b in ALL_BLOCKS if b.language == "yaml"], ids=lambda block: block.name)
def test_a_yaml_block_is_valid_yaml(block: Block) -> None:
    assert yaml.safe_load(block.code)


def test_every_path_of_the_http_interface_that_the_pages_name_exists() -> None:
    from clv.serve.http.routes import create_app
    from clv.serve.scoring.backend import LiveBackend

    known = set(create_app(LiveBackend()).openapi()["paths"])
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = {re.sub(r"(/v1/customers)/\w+", r"\1/{customer_id}", path) for path in re.findall(r"/v1/[\w/]+", text)}
    assert len(named) > 4
    assert named - known == set()


def test_every_file_that_a_page_names_exists() -> None:
    """A path in backquotes that begins with a folder of the repository is a file or folder of it."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"`((?:clv|ray_jobs|serve_configs|benchmarks|tests|docs|examples)/[\w./-]*)`", text))
    assert len(named) > 20
    assert {path for path in named if not (REPO / path).exists()} == set()
