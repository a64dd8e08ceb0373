"""Who may import whom, and that importing never acts: the layers of the project, held by its syntax trees."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent

# Rooms from the bottom up; those of one line do not import each other, and nobody imports upwards.
ORDER = (
    ("clv.version",),
    ("clv.data",),
    ("clv.simulate",),
    ("clv.btyd",),
    ("clv.models",),
    ("clv.bundle",),
    ("clv.forecast",),
    ("clv.evaluate",),
    ("clv.registry",),
    ("clv.tasks",),
    ("clv.decide", "clv.explain", "clv.monitor"),
    ("clv.train",),
    ("clv.compress", "clv.privacy"),
    ("clv.cluster", "clv.serve", "clv.api"),
    ("clv",),
    ("ray_jobs",),
)
HEIGHT = {room: height for height, rooms in enumerate(ORDER) for room in rooms}
# A replica must start without the training code, and nothing that is shipped may need a simulated shop.
NEVER = {("clv.serve", "clv.train"), ("clv.serve", "clv.simulate"), ("clv.forecast", "clv.simulate")}

RAY_ALLOWED = ("clv.cluster", "clv.serve.deployments", "clv.serve.app", "ray_jobs")
DEEPSPEED_ALLOWED = ("clv.train", "clv.cluster")
# numpy and scipy only: these run in milliseconds, on machines and in notebooks without torch.
NO_TORCH = (
    *("clv.data", "clv.simulate", "clv.btyd", "clv.evaluate"),
    *("clv.forecast.distributions", "clv.forecast.calibration", "clv.forecast.slope", "clv.forecast.portfolio"),
)
TORCH_FAMILY = {"torch", "transformers", "deepspeed", "peft"}
# The plain ZILN network is a baseline of the back-test, not of our making: it may import torch when it runs.
LAZY_TORCH_ALLOWED = "clv.evaluate.baselines.ziln"
MOST_MODULES = 14
# Calls that touch files, processes or services, wherever they stand in a statement that runs at import.
ACTS = {"init", "run", "start", "open", "mkdir", "makedirs", "read_text", "write_text", "load", "basicConfig"}


@dataclass(frozen=True)
class Import:
    target: str
    line: int
    lazy: bool


def module_name(path: Path, root: Path = REPO) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    """The room that a module stands in; `clv` itself stands for clv/__init__.py alone, not for unknown packages."""
    parts = module.split(".")
    name = ".".join(parts[:2]) if parts[0] == "clv" else parts[0]
    return name if name in HEIGHT else None


def may_import(room: str, target: str) -> bool:
    return room == target or (HEIGHT[target] < HEIGHT[room] and (room, target) not in NEVER)


def imports(source: str, module: str, is_package: bool, siblings: set[str]) -> Iterator[Import]:
    """Every import of a module, also those inside functions and by literal name; `siblings` are all our modules."""
    tree = ast.parse(source)
    inside = {
        id(node)
        for scope in ast.walk(tree)
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(scope)
    }
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        lazy = id(node) in inside
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(full if full in siblings else base, node.lineno, lazy)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"__import__", "importlib.import_module"}:
            names = (str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant))
            yield from (Import(name, node.lineno, lazy) for name in names)


def within(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def import_violations(source: str, module: str, *, is_package: bool = False, siblings: set[str]) -> list[str]:
    """One line for each import of `module` that the rules forbid."""
    room, found = room_of(module), []
    if room is None:
        return [f"{module}: no place for this package; add it to ORDER"]
    for item in imports(source, module, is_package, siblings):
        top, where = item.target.split(".")[0], f"{module}:{item.line} imports {item.target}"
        if top in {"clv", "ray_jobs"} and item.target != "clv":
            target = room_of(item.target)
            if target is None or not may_import(room, target):
                found.append(f"{where}: {room} must not import {target or 'a package without a place'}")
        if top == "ray" and not within(module, RAY_ALLOWED):
            found.append(f"{where}: Ray lives in {', '.join(RAY_ALLOWED)}")
        if top == "deepspeed" and not within(module, DEEPSPEED_ALLOWED):
            found.append(f"{where}: DeepSpeed lives in {', '.join(DEEPSPEED_ALLOWED)}")
        excepted = module == LAZY_TORCH_ALLOWED and item.lazy
        if top in TORCH_FAMILY and within(module, NO_TORCH) and not excepted:
            found.append(f"{where}: {room} works without torch")
    return found


def runs_at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """The parts of statements that Python evaluates when it imports the module; bodies of functions are not."""
    for statement in body:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from statement.decorator_list
            case ast.ClassDef():
                yield from statement.decorator_list
                yield from runs_at_import(statement.body)
            case ast.If(test=test) if ast.unparse(test) == "__name__ == '__main__'":
                pass
            case ast.If() | ast.Try() | ast.For() | ast.While() | ast.With():
                for block in ("body", "orelse", "finalbody"):
                    yield from runs_at_import(getattr(statement, block, []))
                for handler in getattr(statement, "handlers", []):
                    yield from runs_at_import(handler.body)
                for header in ("test", "iter", "items"):
                    value = getattr(statement, header, [])
                    yield from (item.context_expr for item in value) if header == "items" else [value] if value else []
            case _:
                yield statement


def import_actions(source: str, module: str) -> list[str]:
    """Statements that do something when the module is imported: bare calls, writes to others' state, I/O."""
    found = []
    for node in runs_at_import(ast.parse(source).body):
        text = f"{module}:{getattr(node, 'lineno', 0)} acts on import: {ast.unparse(node).splitlines()[0]}"
        if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
            found.append(text)
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete):
            targets = getattr(node, "targets", None) or [node.target]  # type: ignore[union-attr]
            if any(isinstance(target, ast.Subscript | ast.Attribute) for target in targets) and not own(
                targets, source
            ):
                found.append(text)
        called = (inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call))
        if any(ast.unparse(function).split(".")[-1] in ACTS for function in called):
            found.append(text)
    return list(dict.fromkeys(found))


def own(targets: list[ast.expr], source: str) -> bool:
    """Whether what is written to was made by this module (a table filled in a second statement)."""
    made = {
        name.id
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for name in ast.walk(node)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    }
    roots = (next((n.id for n in ast.walk(target) if isinstance(n, ast.Name)), "") for target in targets)
    return all(root in made for root in roots)


def project_files() -> list[Path]:
    return sorted([*REPO.glob("clv/**/*.py"), *REPO.glob("ray_jobs/**/*.py")])


FILES = project_files()
SIBLINGS = {module_name(path) for path in FILES}


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or around a corner (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(arrows.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return found


def arrows() -> dict[str, set[str]]:
    """module -> modules of ours that it imports, also inside functions and for types only."""
    return {
        module_name(path): {
            item.target
            for item in imports(
                path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py", SIBLINGS
            )
            if item.target in SIBLINGS and item.target != module_name(path)
        }
        for path in FILES
    }


def test_no_two_files_import_each_other_around_any_corner() -> None:
    found = arrows()
    found["clv"] = set()  # the package offers `fit` and `load` of the API lazily; its version is below everybody
    assert circles(found) == []


def test_a_planted_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_no_folder_is_a_heap() -> None:
    folders = {path.parent for path in REPO.glob("clv/**/*.py")}
    sizes = {str(folder): sum(p.name != "__init__.py" for p in folder.glob("*.py")) for folder in folders}
    assert {folder: size for folder, size in sizes.items() if size > MOST_MODULES} == {}


def test_no_two_public_classes_share_a_name() -> None:
    homes: dict[str, list[str]] = {}
    for path in REPO.glob("clv/**/*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module_name(path))
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    found = import_violations(source, module_name(path), is_package=path.name == "__init__.py", siblings=SIBLINGS)
    assert found == []


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_module_does_nothing_when_imported(path: Path) -> None:
    assert import_actions(path.read_text(encoding="utf-8"), module_name(path)) == []


PLANTED = {
    "Ray in a model": ("clv.models.heads", "import ray.train", "Ray lives in"),
    "Ray inside a function": ("clv.forecast.predictor", "def f():\n    from ray import data", "Ray lives in"),
    "Ray by name": ("clv.data.prepare.mapping", "import importlib\nx = importlib.import_module('ray')", "Ray lives in"),
    "Ray in a server part that needs none": ("clv.serve.http.routes", "from ray import serve", "Ray lives in"),
    "torch in data": ("clv.data.features", "from torch import nn", "works without torch"),
    "torch in a baseline, eagerly": ("clv.evaluate.baselines.ziln", "import torch", "works without torch"),
    "torch in another baseline, lazily": ("clv.evaluate.baselines.run", "def f():\n    import torch", "works without"),
    "torch in a distribution": ("clv.forecast.distributions", "import torch", "works without torch"),
    "DeepSpeed in a model": ("clv.models.model", "import deepspeed", "DeepSpeed lives in"),
    "data above itself": ("clv.data.spec.models", "from clv.models import heads", "must not import clv.models"),
    "models above themselves": ("clv.models.model", "import clv.train.loop", "must not import clv.train"),
    "cluster to serve": ("clv.cluster.scoring", "from clv.serve.client import Client", "must not import clv.serve"),
    "serve to cluster": ("clv.serve.app", "from clv import cluster", "must not import clv.cluster"),
    "serve to train": ("clv.serve.app", "from clv.train import loop", "must not import clv.train"),
    "cluster to the API": ("clv.cluster.scoring", "from clv.api import fit", "must not import clv.api"),
    "a relative way out": ("clv.data.spec.models", "from ...train import loop", "must not import clv.train"),
    "library to jobs": ("clv.train.loop", "import ray_jobs.train", "must not import ray_jobs"),
    "a package nobody knows": ("clv.helpers.misc", "x = 1", "no place for this package"),
    "an import of a package nobody knows": ("clv.train.loop", "import clv.helpers", "a package without a place"),
}


@pytest.mark.parametrize(("module", "source", "message"), PLANTED.values(), ids=PLANTED)
def test_a_planted_breach_is_found(module: str, source: str, message: str) -> None:
    siblings = SIBLINGS | {
        "clv.cluster",
        "clv.train",
        "clv.models.inputs.batch",
        "clv.train.estimate",
        "clv.train.engines.torch_engine",
    }
    found = import_violations(source, module, siblings=siblings)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("clv.cluster.training", "import ray\nfrom clv.train import loop\nfrom clv.data.clock import Clock"),
        ("clv.serve.deployments", "from ray import serve\nfrom clv.forecast.predictor import Predictor"),
        ("clv.evaluate.baselines.ziln", "def fit():\n    import torch"),
        ("clv.models.model", "import torch\nfrom clv.version import __version__\nimport clv.data.cutoff"),
        ("ray_jobs.train", "def main():\n    from clv.cluster import training\n    import ray"),
    ],
)
def test_what_the_layers_allow_is_not_a_breach(module: str, source: str) -> None:
    assert import_violations(source, module, siblings=SIBLINGS) == []


@pytest.mark.parametrize(
    "source",
    [
        "import ray\nray.init()",
        "import os\nos.environ['X'] = '1'",
        "from pathlib import Path\nOUT = Path('out').mkdir()",
        "import torch\ntorch.backends.cudnn.benchmark = True",
        "with open('x') as f:\n    pass",
        "if True:\n    import logging\n    logging.basicConfig()",
        "class A:\n    data = open('x').read()",
        "try:\n    import ray\nexcept ImportError:\n    print('no Ray')",
    ],
)
def test_a_planted_action_is_found(source: str) -> None:
    assert len(import_actions(source, "clv.planted")) == 1


@pytest.mark.parametrize(
    "source",
    [
        '"""Doc."""\nimport logging\nLOG = logging.getLogger(__name__)',
        "TABLE = {}\nTABLE['a'] = 1",
        "from ray import serve\n@serve.deployment(num_replicas=1)\nclass A:\n    def f(self): open('x')",
        "if __name__ == '__main__':\n    main()",
        "def main():\n    import ray\n    ray.init()",
    ],
)
def test_definitions_are_not_actions(source: str) -> None:
    assert import_actions(source, "clv.planted") == []


def loaded_by(statement: str, folder: Path) -> dict[str, list[str]]:
    """Runs one import in a process of its own; returns what it loaded and left behind."""
    code = (
        "import json, logging, os, sys\nbefore = dict(os.environ)\n"
        f"{statement}\n"
        "print(json.dumps({'modules': [m for m in sys.modules if '.' not in m], 'files': os.listdir('.'),"
        " 'environment': sorted(set(os.environ.items()) ^ set(before.items())),"
        " 'handlers': [str(h) for h in logging.getLogger('clv').handlers]}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_package_loads_neither_ray_nor_torch(tmp_path: Path) -> None:
    loaded = loaded_by("import clv", tmp_path)
    assert {"ray", "torch", "transformers", "deepspeed"}.isdisjoint(loaded["modules"])


def test_tables_and_btyd_models_import_without_ray_and_torch_and_leave_no_trace(tmp_path: Path) -> None:
    modules = sorted(m for m in SIBLINGS if within(m, NO_TORCH))
    loaded = loaded_by(f"import {', '.join(modules)}", tmp_path)
    assert {"ray", "torch", "transformers", "deepspeed"}.isdisjoint(loaded["modules"])
    assert (loaded["files"], loaded["environment"], loaded["handlers"]) == ([], [], [])


def test_models_training_and_prediction_import_without_ray(tmp_path: Path) -> None:
    modules = sorted(m for m in SIBLINGS if not within(m, RAY_ALLOWED))
    loaded = loaded_by(f"import {', '.join(modules)}", tmp_path)
    assert "ray" not in loaded["modules"]
    assert (loaded["files"], loaded["handlers"]) == ([], [])
