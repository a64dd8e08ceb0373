"""Messages for mistakes in a dataset file: each names the file, the key and the remedy."""

import pytest

from clv.data.spec.errors import did_you_mean
from clv.data.spec.models import DatasetSpec, SpecError

MINIMAL = """
name: shop
timezone: Europe/Berlin
currency: EUR
events:
  path: log.csv
  columns: {customer_id: who, event_time: when, amount: paid}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("events:", "evnts:", r"shop\.yaml: evnts: unknown key \(did you mean 'events'\?\)"),
        ("customer_id: who", "custmer_id: who", r"events\[0\]\.columns\.custmer_id: unknown key .*'customer_id'"),
        ("customer_id: who, ", "", r"events\[0\]\.columns\.customer_id: is missing: add it"),
        ("timezone: Europe/Berlin", "timezone: Berlin/Mitte", r"timezone: .*'Berlin/Mitte' is not an IANA name"),
        ("currency: EUR", "", "value: gross needs currency"),
        (", amount: paid", "", r"needs events\[0\]\.columns\.amount or unit_price"),
        ("path: log.csv", "path: log.csv\n  delimiter: ';;'", r"delimiter ';;' is neither"),
        ("path: log.csv", "path: log.csv\n  header: false", "header: false needs names"),
        ("path: log.csv", "path: log.csv\n  encoding: utf-9", "encoding 'utf-9' is unknown"),
        ("path: log.csv", "path: log.csv\n  time_format: epoch", "'epoch' is none of iso, unix_s"),
        ("path: log.csv", "format: csv", "give either path or sql"),
        ("name: shop", "name: shop\nvalue: brutto", "value: Input should be 'gross', 'net' or 'none', not 'brutto'"),
        ("name: shop", "name: shop\nmeasure: margin", r"shop\.yaml: measure: unknown key \(known: "),
        ("name: shop", "name: shop\nmax_rejected_share: 5", "max_rejected_share: .*less than or equal to 1, not 5"),
        ("name: shop", "name: shop\nhorizons_days: [0]", r"horizons_days\[0\]: .*greater than 0"),
        ("name: shop", "name: shop\nname: shop", "not valid YAML: key 'name' is given twice"),
        ("name: shop", "name: [", "not valid YAML"),
    ],
)
def test_a_mistake_is_one_error_naming_file_key_and_remedy(old: str, new: str, message: str) -> None:
    assert old in MINIMAL
    with pytest.raises(SpecError, match=message):
        DatasetSpec.parse(MINIMAL.replace(old, new), "shop.yaml")


def test_all_mistakes_of_a_file_are_told_at_once() -> None:
    with pytest.raises(SpecError, match=r"(?s)timezone.*currncy"):
        DatasetSpec.parse(MINIMAL.replace("Europe/Berlin", "X").replace("currency", "currncy"), "shop.yaml")


def test_suggestions_do_not_depend_on_case() -> None:
    assert did_you_mean("Customer_ID", ["customer_id", "amount"]) == " (did you mean 'customer_id'?)"
    assert did_you_mean("zzz", ["a", "b"]) == " (known: a, b)"
