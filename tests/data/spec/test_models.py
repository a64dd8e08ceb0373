"""The dataset file: what it accepts, and that every mistake is one error with file, key and remedy."""

from pathlib import Path

import pytest

from clv.data.spec.models import DatasetSpec, SpecError

SPECS = sorted((Path(__file__).parents[3] / "ray_jobs" / "datasets").glob("*.yaml"))
MINIMAL = """
name: shop
timezone: Europe/Berlin
currency: EUR
events:
  path: log.csv
  columns: {customer_id: who, event_time: when, amount: paid}
"""


def test_the_shipped_specs_are_found() -> None:
    assert [path.stem for path in SPECS] == [
        "cdnow",
        "complete_journey",
        "online_retail_ii",
        "online_retail_ii_products",
        "taobao",
    ]


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_shipped_spec_loads_and_its_resolved_form_means_the_same(path: Path) -> None:
    spec = DatasetSpec.load(path)
    again = DatasetSpec.parse(spec.to_yaml(), "resolved")
    assert again == spec
    assert again.sha256() == spec.sha256()


def test_defaults_are_those_of_the_documentation() -> None:
    spec = DatasetSpec.parse(MINIMAL, "shop.yaml")
    assert spec.horizons_days == [30, 90, 180, 365]
    assert spec.value == "gross"
    assert spec.events[0].time_format == "iso"
    assert spec.events[0].event_type == "purchase"
    cleaning = spec.cleaning
    assert (cleaning.exact_duplicates, cleaning.duplicated_orders, cleaning.ignore_items) == ("keep", "keep", [])


def test_a_yaml_date_is_read_as_text() -> None:
    spec = DatasetSpec.parse(MINIMAL + "cleaning: {bounds: {event_time: {min: 2017-11-25}}}\n", "shop.yaml")
    assert spec.cleaning.bounds.event_time.min == "2017-11-25"


def test_the_hash_ignores_comments_and_key_order_but_not_content() -> None:
    spec = DatasetSpec.parse(MINIMAL, "a")
    turned = DatasetSpec.parse("# note\nvalue: gross\n" + MINIMAL, "b")
    other = DatasetSpec.parse(MINIMAL + "value: net\n", "c")
    assert spec.sha256() == turned.sha256()
    assert spec.sha256() != other.sha256()


def test_an_environment_variable_stays_unexpanded_in_the_resolved_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_PLACE", "/very/secret")
    spec = DatasetSpec.parse(MINIMAL.replace("log.csv", "${SECRET_PLACE}/log.csv"), "shop.yaml")
    assert "/very/secret" not in spec.to_yaml()
    assert "${SECRET_PLACE}/log.csv" in spec.to_yaml()


def test_an_attribute_must_say_that_it_never_changes() -> None:
    customers = "customers: {path: c.csv, columns: {customer_id: id}, attributes: {city: {column: city}}}\n"
    with pytest.raises(SpecError, match="attribute 'city' may have changed"):
        DatasetSpec.parse(MINIMAL + customers, "shop.yaml")
    DatasetSpec.parse(MINIMAL + customers.replace("column: city", "column: city, known_at: moved"), "shop.yaml")
    both = customers.replace("column: city", "column: city, known_at: moved, constant: true")
    with pytest.raises(SpecError, match="attribute 'city' may have changed: write either"):
        DatasetSpec.parse(MINIMAL + both, "shop.yaml")
    with pytest.raises(SpecError, match="'moved' is none of iso"):
        DatasetSpec.parse(MINIMAL + customers.replace("columns:", "time_format: moved, columns:"), "shop.yaml")


def test_a_file_that_is_no_mapping_or_absent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="a dataset file is a mapping"):
        DatasetSpec.parse("- a\n- b\n", "list.yaml")
    with pytest.raises(SpecError, match=r"absent\.yaml: cannot be read"):
        DatasetSpec.load(tmp_path / "absent.yaml")
