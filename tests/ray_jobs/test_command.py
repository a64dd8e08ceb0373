"""A job's end on the command line: exit codes, one line on stderr, log lines as text or JSON."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from clv.data.spec.models import SpecError
from ray_jobs.command import configure_logging, execute
from ray_jobs.options import JobOptions


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["probe"])


@pytest.mark.parametrize(("error", "code"), [(SpecError, 2), (ValueError, 1), (OSError, 1), (RuntimeError, 1)])
def test_an_expected_failure_is_one_line_and_its_exit_code(
    error: type[Exception], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: JobOptions) -> None:
        raise error("the file is empty")

    with pytest.raises(SystemExit, match=f"^{code}$"):
        execute("probe", JobOptions, fail, None)
    assert capsys.readouterr() == ("", "probe: the file is empty\n")


def test_an_unexpected_failure_keeps_its_traceback() -> None:
    def fail(options: JobOptions) -> None:
        raise KeyError("a bug of ours")

    with pytest.raises(KeyError, match="a bug of ours"):
        execute("probe", JobOptions, fail, None)


def test_log_lines_are_json_objects_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLV_LOG_FORMAT", "json")
    execute("probe", JobOptions, lambda options: logging.getLogger("clv.test").info("3 rows"), None)
    line = json.loads(capsys.readouterr().out)
    assert (line["level"], line["logger"], line["message"]) == ("INFO", "clv.test", "3 rows")
    assert line["time"].endswith("+00:00")
    with pytest.raises(ValueError, match="CLV_LOG_FORMAT is 'xml'; choose among text, json"):
        configure_logging("xml")
