"""The embedding job's refusals before Ray starts; tests/cluster/test_embedding.py has the vectors."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs import embed


@pytest.mark.parametrize("name", ["workers", "threads"])
def test_a_number_below_one_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"--{name} 0 must be at least 1"):
        embed.run(embed.Options(histories=tmp_path, **{name: 0}))


def test_a_folder_without_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=str(tmp_path)):
        embed.run(embed.Options(histories=tmp_path))
