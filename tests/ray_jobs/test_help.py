"""Every job answers --help at once, run as a module or as a file: without Ray, in one process, with exit code 0."""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
# Where Ray or torch are loaded, --help needs 3 CPU-s and more; tyro and pydantic together need less than 1.
CPU_SECONDS = 3.0

# A process takes most of a second to start, so one answers for all uses of a job.
PROBE = """
import io, json, resource, runpy, sys
from contextlib import redirect_stderr, redirect_stdout
module, answers = sys.argv[1], []
for arguments in (["--help"], ["--no-such-option", "1"]):
    sys.argv = [module, *arguments]
    code, text = 0, io.StringIO()
    try:
        with redirect_stdout(text), redirect_stderr(text):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code or 0
    used = resource.getrusage(resource.RUSAGE_SELF)
    loaded = sorted({"ray", "torch", "transformers", "deepspeed"} & set(sys.modules))
    answers.append({"code": code, "text": text.getvalue(), "loaded": loaded, "cpu": used.ru_utime + used.ru_stime})
print(json.dumps(answers))
"""


def is_verb(path: Path) -> bool:
    """Whether a file is a job: it has a `__main__` guard."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" for node in tree.body)


VERBS = sorted(path.stem for path in REPO.glob("ray_jobs/*.py") if is_verb(path))


def python(*arguments: str) -> str:
    """Standard output of a Python process in the repository's root."""
    done = subprocess.run([sys.executable, *arguments], cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def smoke_test(verb: str) -> list[dict[str, Any]]:
    """What a job, run as a module, answers to --help and to an option that it does not have."""
    answers: list[dict[str, Any]] = json.loads(python("-c", PROBE, f"ray_jobs.{verb}").splitlines()[-1])
    return answers


@pytest.mark.parametrize("verb", VERBS)
def test_help_answers_quickly_without_ray_and_torch(verb: str) -> None:
    answer, _ = smoke_test(verb)
    assert (answer["code"], answer["loaded"]) == (0, [])
    assert "usage:" in answer["text"].lower()
    assert answer["cpu"] < CPU_SECONDS


@pytest.mark.parametrize("verb", VERBS)
def test_a_job_run_as_a_file_answers_as_it_does_as_a_module(verb: str) -> None:
    """Python then puts the folder of the jobs first on its path, before the standard library."""
    options = re.compile(r"--[a-z][a-z.-]+")
    as_file, as_module = python(f"ray_jobs/{verb}.py", "--help"), smoke_test(verb)[0]["text"]
    assert "usage:" in as_file.lower()
    assert set(options.findall(as_file)) == set(options.findall(as_module))


@pytest.mark.parametrize("verb", VERBS)
def test_a_usage_error_ends_with_code_2_and_points_at_the_help(verb: str) -> None:
    _, answer = smoke_test(verb)
    assert (answer["code"], answer["loaded"]) == (2, [])
    assert "--help" in answer["text"]


def test_no_job_has_the_name_of_a_module_of_the_standard_library() -> None:
    assert {path.stem for path in REPO.glob("ray_jobs/*.py")} & sys.stdlib_module_names == set()


def test_every_other_file_serves_a_job() -> None:
    """A job that lost its `__main__` guard would be neither run nor imported."""
    others = {path.stem for path in REPO.glob("ray_jobs/*.py")} - {"__init__", *VERBS}
    sources = [path.read_text(encoding="utf-8") for path in REPO.glob("ray_jobs/*.py")]
    imported = set(re.findall(r"ray_jobs(?:\.| import )(\w+)", "\n".join(sources)))
    assert others - imported == set()
