"""What operations reads names what exists: metrics, jobs, options, addresses, alerts."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from clv.serve.http.metrics import Metrics
from clv.serve.http.routes import routes
from clv.serve.scoring.backend import LiveBackend
from ray_jobs.refresh import textfile

DOCS = Path(__file__).parents[2] / "docs"
RULES = [rule for group in yaml.safe_load((DOCS / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
PANELS = json.loads((DOCS / "dashboard.json").read_text())["panels"]
RUNBOOK = (DOCS / "runbook.md").read_text()


def exported() -> dict[str, set[str]]:
    """Names that Prometheus sees, with their labels."""
    metrics = Metrics()
    labels = {}
    for family in metrics.registry.collect():
        known = {
            "clv_requests": {"method", "route", "status"},
            "clv_request_seconds": {"route"},
            "clv_customers": {"status"},
            "clv_events": {"status"},
            "clv_tokens": {"kind"},
            "clv_model_info": {"version", "cut"},
        }.get(family.name, set())
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        for suffix in suffixes:
            labels[f"ray_{family.name}{suffix}"] = known | ({"le"} if suffix == "_bucket" else set())
    return labels | {line.split()[0]: set() for line in textfile(0, 0).splitlines() if not line.startswith("#")}


EXPRESSIONS = [(rule["alert"], rule["expr"]) for rule in RULES]
EXPRESSIONS += [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
def test_an_expression_uses_metrics_and_labels_that_exist(where: str, expression: str) -> None:
    known = exported()
    named = re.findall(r"\b((?:ray_)?clv_\w+)(?:\{([^}]*)\})?", expression)
    assert named
    for name, selector in named:
        assert name in known
        assert set(re.findall(r"(\w+)[=!]", selector)) <= known[name]
    assert set(re.findall(r"by \((\w+)\)", expression)) <= set().union(*(known[name] for name, _ in named))
    assert expression.count("(") == expression.count(")")


def test_the_labels_assumed_here_are_those_of_the_metrics() -> None:
    metrics = Metrics()
    assert metrics.requests._labelnames == ("method", "route", "status")
    assert metrics.latency._labelnames == ("route",)
    assert metrics.tokens._labelnames == ("kind",)
    assert metrics.model._labelnames == ("version", "cut")


def test_every_alert_has_its_page_and_every_page_its_alert() -> None:
    assert re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE) == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]


def test_the_dashboard_has_no_two_panels_in_one_place() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in PANELS})


COMMANDS = re.findall(r"^python -m ray_jobs\.(\w+) (.*)$", RUNBOOK, re.MULTILINE)


@pytest.mark.parametrize(("verb", "rest"), COMMANDS)
def test_a_command_of_the_runbook_has_options_that_exist_and_all_that_are_needed(verb: str, rest: str) -> None:
    options = importlib.import_module(f"ray_jobs.{verb}").Options
    fields = {f"--{field.name.replace('_', '-')}": field for field in dataclasses.fields(options)}
    given = {word for word in shlex.split(rest, comments=True) if word.startswith("--")}
    assert given <= set(fields)
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    assert needed <= given


def test_addresses_of_the_runbook_exist() -> None:
    paths = set(routes(LiveBackend()).openapi()["paths"])
    found = set(re.findall(r"(?:URL|POST |DELETE )(/[\w/]+)", RUNBOOK))
    assert {re.sub(r"/\d+$", "/{customer_id}", path) for path in found} <= paths
    assert len(COMMANDS) > 7
