import json
import re
from pathlib import Path

import pandas as pd

from clv.evaluate.report import tuning_page

TRIALS = [
    {"trial": "aa", "learning_rate": 0.1, "size": "2x64", "scores": (0.1, 0.2), "best": 0.2, "failed": ""},
    {"trial": "bb", "learning_rate": 0.001, "size": "4x128", "scores": (), "best": float("-inf"), "failed": "nan"},
]


def test_the_page_shows_every_scored_trial_and_loads_nothing_from_the_network() -> None:
    page = tuning_page.page(TRIALS, "a search")
    own = page.split("</script>")[-2]
    assert '"aa"' in own
    assert '"bb"' not in own
    assert "learning_rate" in own
    assert '"type":"category"' in own
    assert "src=" not in page.replace('src="data:', "")[-20000:]


def test_each_setting_has_a_chart_with_an_axis_of_its_kind() -> None:
    settings = [(0.1, 0.0, "2x64"), (0.005, 0.2, "4x128"), (0.01, 0.1, "2x64")]
    trials = [
        {"trial": f"t{i}", "learning_rate": rate, "dropout": dropout, "size": size, "scores": (0.1, 0.3 + i, 0.2 + i),
         "best": 0.3 + i, "failed": ""}
        for i, (rate, dropout, size) in enumerate(settings)
    ]  # fmt: skip
    own = tuning_page.page(trials, "a search").split("</script>")[-2]
    found = re.search(
        r"Plotly\.newPlot\(\s*\"[^\"]+\",\s*(\[.*?\]),\s*(\{.*\}),\s*\{[^{}]*\}\s*\)", own, flags=re.DOTALL
    )
    assert found is not None
    traces, layout = json.loads(found[1]), json.loads(found[2])
    assert [(trace["name"], trace["x"], trace["y"]) for trace in traces[:3]] == [
        (f"t{i}", [1, 2, 3], [0.1, 0.3 + i, 0.2 + i]) for i in range(3)
    ]
    assert [trace["x"] for trace in traces[3:]] == [list(values) for values in zip(*settings, strict=True)]
    assert all(trace["y"] == [0.3, 1.3, 2.3] for trace in traces[3:])
    axes = [layout[f"xaxis{number}"] for number in ("", "2", "3", "4")]
    assert [axis["title"]["text"] for axis in axes] == ["epoch", "learning_rate", "dropout", "size"]
    # Logarithmic where positive numbers span more than a factor of ten.
    assert [axis.get("type") for axis in axes] == [None, "log", None, "category"]
    assert layout["height"] == 4 * 320


def test_the_table_has_every_trial_with_its_number_of_epochs(tmp_path: Path) -> None:
    tuning_page.write(tmp_path, TRIALS, "a search")
    table = pd.read_csv(tmp_path / "trials.csv")
    assert table["trial"].tolist() == ["aa", "bb"]
    assert table["epochs_run"].tolist() == [2, 0]
    assert "a search" in (tmp_path / "report.html").read_text(encoding="utf-8")
