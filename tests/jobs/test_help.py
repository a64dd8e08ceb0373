"""Every job answers --help at once: without Ray, in one process, with exit code 0."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
# Where Ray or torch are loaded, --help needs 3 CPU-s and more; tyro and pydantic together need less than 1.
CPU_SECONDS = 3.0

PROBE = """
import io, json, resource, runpy, sys
from contextlib import redirect_stdout
module, *arguments = sys.argv[1:]
sys.argv = [module, *arguments]
code, text = 0, io.StringIO()
try:
    with redirect_stdout(text):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as stop:
    code = stop.code or 0
used = resource.getrusage(resource.RUSAGE_SELF)
loaded = sorted({"ray", "torch", "transformers", "deepspeed"} & set(sys.modules))
print(json.dumps({"code": code, "text": text.getvalue(), "loaded": loaded, "cpu": used.ru_utime + used.ru_stime}))
"""


def is_verb(path: Path) -> bool:
    """Whether a file is a job: it has a `__main__` guard."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" for node in tree.body)


VERBS = sorted(path.stem for path in REPO.glob("ray_jobs/*.py") if is_verb(path))


def probe(verb: str, *arguments: str) -> dict[str, object]:
    command = [sys.executable, "-c", PROBE, f"ray_jobs.{verb}", *arguments]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "stderr": done.stderr}


@pytest.mark.parametrize("verb", VERBS)
def test_help_answers_quickly_without_ray_and_torch(verb: str) -> None:
    answer = probe(verb, "--help")
    assert (answer["code"], answer["loaded"]) == (0, [])
    assert "usage:" in str(answer["text"]).lower()
    assert answer["cpu"] < CPU_SECONDS


@pytest.mark.parametrize("verb", VERBS)
def test_a_usage_error_ends_with_code_2_and_points_at_the_help(verb: str) -> None:
    answer = probe(verb, "--no-such-option", "1")
    assert (answer["code"], answer["loaded"]) == (2, [])
    assert "--help" in f"{answer['text']}{answer['stderr']}"


def test_every_other_file_serves_a_job() -> None:
    """A job that lost its `__main__` guard would be neither run nor imported."""
    others = {path.stem for path in REPO.glob("ray_jobs/*.py")} - {"__init__", *VERBS}
    sources = [path.read_text(encoding="utf-8") for path in REPO.glob("ray_jobs/*.py")]
    imported = set(re.findall(r"ray_jobs(?:\.| import )(\w+)", "\n".join(sources)))
    assert others - imported == set()
