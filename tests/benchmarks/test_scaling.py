"""The model of step time against its own closed form."""

import pytest

from benchmarks.scaling import Machine, efficiency, exchange, step


def test_an_all_reduce_carries_nearly_twice_its_bytes_and_waits_at_every_hop() -> None:
    machine = Machine(compute=1.0, bandwidth=1e9, latency=1e-3, overlap=0.0)
    assert exchange(machine, 1e9, 1) == 0.0
    assert exchange(machine, 1e9, 2) == pytest.approx(1.0 + 2e-3)
    assert exchange(machine, 1e9, 512) == pytest.approx(2 * 511 / 512 + 2 * 511e-3)
    assert step(machine, 1e9, 2) == pytest.approx(2.002)
    assert efficiency(machine, 1e9, 2) == pytest.approx(1 / 2.002)


def test_an_exchange_behind_the_backward_pass_costs_nothing() -> None:
    machine = Machine(compute=1.0, bandwidth=1e9, latency=0.0, overlap=0.5)
    assert step(machine, 4e8, 2) == 1.0
    assert step(machine, 6e8, 2) == pytest.approx(1.1)
    assert efficiency(machine, 4e8, 2) == 1.0
