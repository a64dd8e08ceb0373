"""Alert rules, dashboard and the page for operations name metrics, labels and alerts that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from clv import bundle
from clv.data import histories
from clv.serve.http.metrics import Metrics
from ray_jobs.refresh import prometheus_text

DOCS = Path(__file__).parents[2] / "docs"
RULES = [rule for group in yaml.safe_load((DOCS / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
PANELS = json.loads((DOCS / "dashboard.json").read_text())["panels"]
OPERATE = (DOCS / "operate.md").read_text()


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
    return labels | {line.split()[0]: set() for line in prometheus_text(0, 0).splitlines() if not line.startswith("#")}


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


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    assert re.findall(r"^### (\w+)$", OPERATE, re.MULTILINE) == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]


def test_no_two_panels_of_the_dashboard_have_one_position() -> None:
    positions = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS]
    assert len(set(positions)) == len(positions) == len({panel["id"] for panel in PANELS})


@pytest.mark.parametrize(
    "message", ["This key may send", "another refresh", "cannot be served", "erased customer", "unknown_customer"]
)
def test_a_message_that_the_page_quotes_is_one_that_the_code_writes(message: str) -> None:
    assert message in OPERATE
    sources = [
        path.read_text() for folder in ("clv/serve", "ray_jobs") for path in (DOCS.parent / folder).rglob("*.py")
    ]
    assert any(message in source for source in sources)


def test_the_changelog_names_the_present_formats() -> None:
    changelog = (DOCS / "changelog.md").read_text()
    assert f"format {bundle.FORMAT}," in changelog
    assert f"schema version {histories.SCHEMA_VERSION}." in changelog
