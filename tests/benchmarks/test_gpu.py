"""The GPU benchmark where there is no GPU: it runs, counts its work right, and claims nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from clv.models.config import BackboneConfig

ROOT = Path(__file__).parents[2]
ABSENT = "import sys\nfor name in ('ray', 'deepspeed', 'pandas', 'pyarrow'): sys.modules[name] = None\n"


def test_it_needs_torch_and_transformers_alone_and_invents_no_number(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("with a GPU it measures, for minutes")
    out = tmp_path / "table.md"
    code = f"{ABSENT}from benchmarks import gpu\ngpu.main(['--steps', '1', '--tokens', '128', '--out', {str(out)!r}])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "tiny 64 checkpointing" in done.stdout
    rows = [line for line in out.read_text().splitlines() if line.startswith("|")][2:]
    assert len(rows) == 2 + 2 * 2 * 5
    assert all(row.count("not measured") == 3 for row in rows)
    assert "smoke test, not a measurement" in out.read_text()


def test_flops_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = BackboneConfig()
    model = gpu.Objective(config)
    x, mask = torch.randn(2, 48, config.width, requires_grad=True), torch.ones(2, 48)
    with FlopCounterMode(display=False) as counter:
        model(x, mask).backward()
    assert gpu.flops_per_token(config, 48) * 96 == pytest.approx(counter.get_total_flops(), rel=0.05)
