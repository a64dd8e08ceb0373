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


def test_the_table_has_every_trial_with_its_number_of_epochs(tmp_path: Path) -> None:
    tuning_page.write(tmp_path, TRIALS, "a search")
    table = pd.read_csv(tmp_path / "trials.csv")
    assert table["trial"].tolist() == ["aa", "bb"]
    assert table["epochs_run"].tolist() == [2, 0]
    assert "a search" in (tmp_path / "report.html").read_text(encoding="utf-8")
