"""Requests that wait together are scored together, and none of them notices."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clv.data.clock import Clock
from clv.data.events import EVENTS, US
from clv.data.histories import build
from clv.serve.http.metrics import Metrics
from clv.serve.scoring.batching import Batcher, Batching, Overloaded, padded_tokens

AS_OF = 1_307_836_800_000_000


def history(name: str, amount: float, text: str | None = None) -> pa.Table:
    time = pa.array([AS_OF - 10**12]).cast(US)
    columns = {column: pa.nulls(1, EVENTS.field(column).type) for column in EVENTS.names}
    columns |= {"customer_id": pa.array([name]), "event_time": time, "known_at": time}
    columns |= {"event_type": pa.array(["purchase"]), "amount": pa.array([amount])}
    columns |= {"text": pa.array([text], pa.string())}
    return build(pa.table(columns, schema=EVENTS), Clock("UTC"))


def long_history(name: str, tokens: int) -> pa.Table:
    times = pa.array([AS_OF - 10**12 - i for i in range(tokens)]).cast(US)
    columns = {column: pa.nulls(tokens, EVENTS.field(column).type) for column in EVENTS.names}
    columns |= {"customer_id": pa.array([name] * tokens), "event_time": times, "known_at": times}
    columns |= {"event_type": pa.array(["view"] * tokens)}
    return build(pa.table(columns, schema=EVENTS), Clock("UTC"))


def together(batcher: Batcher, asked: Sequence[tuple[pa.Table, int, tuple[int, ...]]]) -> list[Any]:
    async def go() -> list[Any]:
        return await asyncio.gather(*(batcher.score(*one) for one in asked), return_exceptions=True)

    return asyncio.run(go())


def totals(table: pa.Table) -> dict[tuple[str, int], float]:
    rows = table.select(["customer_id", "horizon_days", "value_mean"]).to_pylist()
    return {(row["customer_id"], row["horizon_days"]): round(row["value_mean"], 6) for row in rows}


def test_requests_of_one_moment_share_a_call_and_get_their_own_rows(predictor: Any) -> None:
    batcher = Batcher(predictor.predict, Batching(wait_s=0.01))
    found = together(batcher, [(history(f"c{i}", i), AS_OF, (365, 90)) for i in range(20)])
    assert predictor.calls == [20]
    for i, table in enumerate(found):
        assert table["horizon_days"].to_pylist() == [90, 365]
        assert totals(table)[(f"c{i}", 365)] == (i if i else pytest.approx(float("nan"), nan_ok=True))


def test_who_wrote_something_shares_a_call_with_who_did_not(predictor: Any) -> None:
    batcher = Batcher(predictor.predict, Batching(wait_s=0.01))
    asked = [(history("A", 5.0), AS_OF, (365,)), (history("B", 7.0, "where is it?"), AS_OF, (365,))]
    assert [totals(table) for table in together(batcher, asked)] == [{("A", 365): 5.0}, {("B", 365): 7.0}]
    assert predictor.calls == [2]


def test_the_same_customer_in_two_requests_keeps_two_histories(predictor: Any) -> None:
    batcher = Batcher(predictor.predict, Batching(wait_s=0.01))
    found = together(batcher, [(history("A", 5.0), AS_OF, (365,)), (history("A", 7.0), AS_OF, (365,))])
    assert [totals(table) for table in found] == [{("A", 365): 5.0}, {("A", 365): 7.0}]
    assert predictor.calls == [2]


def test_other_times_and_horizons_are_other_calls(predictor: Any) -> None:
    batcher = Batcher(predictor.predict, Batching(wait_s=0.01))
    asked = [(AS_OF, (365,)), (AS_OF + 1, (365,)), (AS_OF, (90,)), (AS_OF, (365,))]
    found = together(batcher, [(history("A", 5.0), *one) for one in asked])
    assert sorted(predictor.calls) == [1, 1, 2]
    assert [table["origin"].cast(pa.int64())[0].as_py() - AS_OF for table in found] == [0, 1, 0, 0]


def test_a_call_never_exceeds_the_largest_batch(predictor: Any) -> None:
    batcher = Batcher(predictor.predict, Batching(wait_s=0.01, max_customers=8))
    together(batcher, [(history(f"c{i}", 1.0), AS_OF, (365,)) for i in range(20)])
    assert predictor.calls == [8, 8, 4]


def test_long_histories_do_not_make_short_ones_long(predictor: Any) -> None:
    """A call holds at most `max_tokens` with the padding: the long one goes alone, in its turn."""
    batcher = Batcher(predictor.predict, Batching(wait_s=0.01, max_tokens=64))
    lengths = [4, 4, 60, 4, 1, 1]
    asked = [(long_history(f"c{i}", tokens), AS_OF, (365,)) for i, tokens in enumerate(lengths)]
    assert all(len(table) == 1 for table in together(batcher, asked))
    assert predictor.calls == [5, 1]


def test_histories_count_as_they_are_computed_cut_to_the_newest_tokens(predictor: Any) -> None:
    batcher = Batcher(predictor.predict, Batching(wait_s=0.01, max_tokens=64), max_length=8)
    together(batcher, [(long_history(f"c{i}", 200), AS_OF, (365,)) for i in range(8)])
    assert predictor.calls == [8]


def test_the_padding_of_each_call_is_reported(predictor: Any) -> None:
    metrics = Metrics()
    batcher = Batcher(predictor.predict, Batching(wait_s=0.01), metrics)
    together(batcher, [(long_history(f"c{i}", tokens), AS_OF, (365,)) for i, tokens in enumerate((1, 3, 4))])
    value = metrics.registry.get_sample_value
    assert value("clv_tokens_total", {"kind": "real"}) == 8
    assert value("clv_tokens_total", {"kind": "padding"}) == 4
    assert value("clv_batch_seconds_count") == value("clv_batch_customers_count") == 1
    assert value("clv_queue_seconds_count") == 3
    assert value("clv_waiting_customers") == 0


@pytest.mark.parametrize(
    ("lengths", "rows", "computed"), [([5, 1, 1, 5], 2, 12), ([5, 1, 1, 5], 4, 20), ([3], 512, 3), ([2, 2, 9], 2, 13)]
)
def test_padding_is_to_the_longest_of_each_group_in_order_of_length(
    lengths: list[int], rows: int, computed: int
) -> None:
    assert padded_tokens(np.array(lengths), rows) == computed


def test_whoever_would_wait_too_long_at_the_present_pace_is_sent_away_at_once(predictor: Any) -> None:
    """40 tokens take 0.2 s: behind 400 of them a request would wait 2 s."""
    predictor.before = lambda histories: time.sleep(0.005 * sum(map(len, histories["time"].to_pylist())))
    batcher = Batcher(predictor.predict, Batching(wait_s=0.001, max_wait_s=1.0, max_tokens=50))

    async def go() -> list[Any]:
        await batcher.score(long_history("one", 1), AS_OF, (365,))
        for i in range(4):
            await batcher.score(long_history(f"w{i}", 40), AS_OF, (365,))
        asked = [long_history(f"c{i}", 40) for i in range(14)]
        return await asyncio.gather(*(batcher.score(one, AS_OF, (365,)) for one in asked), return_exceptions=True)

    found = asyncio.run(go())
    refused = [one for one in found if isinstance(one, Overloaded)]
    assert 6 <= len(refused) <= 10
    assert found[0]["customer_id"].to_pylist() == ["c0"]
    assert refused[0].retry_after_s == 1


def test_those_without_an_event_before_are_absent_from_their_own_answer_only(predictor: Any) -> None:
    batcher = Batcher(predictor.predict, Batching(wait_s=0.01))
    joined = pa.concat_tables([history("A", 5.0), history("C", 7.0)])
    early = AS_OF - 10**12
    found = together(batcher, [(joined, AS_OF, (365,)), (history("B", 1.0), AS_OF, (365,))])
    assert [sorted(totals(table)) for table in found] == [[("A", 365), ("C", 365)], [("B", 365)]]
    assert [len(table) for table in together(batcher, [(joined, early, (365,))])] == [0]


def test_one_request_that_fails_does_not_fail_its_neighbours(predictor: Any) -> None:
    def fail_on_13(histories: pa.Table) -> None:
        if 13.0 in histories["amount"].combine_chunks().flatten().to_pylist():
            raise RuntimeError("unlucky")

    predictor.before = fail_on_13
    batcher = Batcher(predictor.predict, Batching(wait_s=0.01))
    found = together(batcher, [(history(f"c{i}", float(i)), AS_OF, (365,)) for i in (12, 13, 14)])
    assert isinstance(found[1], RuntimeError)
    assert [totals(table) for table in (found[0], found[2])] == [{("c12", 365): 12.0}, {("c14", 365): 14.0}]


def test_a_full_queue_refuses_but_one_large_request_always_fits(predictor: Any) -> None:
    batcher = Batcher(predictor.predict, Batching(wait_s=0.01, max_customers=2, max_waiting=2))
    large = pa.concat_tables([history(f"c{i}", 1.0) for i in range(5)])
    found = together(batcher, [(large, AS_OF, (365,)), (history("A", 1.0), AS_OF, (365,))])
    assert len(found[0]) == 5
    assert isinstance(found[1], Overloaded)
    assert len(together(batcher, [(history("A", 1.0), AS_OF, (365,))])[0]) == 1, "room again"


def test_a_withdrawn_request_is_never_scored(predictor: Any) -> None:
    release = threading.Event()
    predictor.before = lambda histories: release.wait(5)
    batcher = Batcher(predictor.predict, Batching(wait_s=0, max_customers=1))

    async def go() -> None:
        first = asyncio.create_task(batcher.score(history("A", 1.0), AS_OF, (365,)))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(batcher.score(history("B", 1.0), AS_OF, (365,)))
        await asyncio.sleep(0.01)
        second.cancel()
        release.set()
        assert totals(await first) == {("A", 365): 1.0}
        assert isinstance((await asyncio.gather(second, return_exceptions=True))[0], asyncio.CancelledError)
        assert totals(await batcher.score(history("C", 1.0), AS_OF, (365,))) == {("C", 365): 1.0}

    asyncio.run(go())
    assert predictor.calls == [1, 1]


@pytest.mark.parametrize(
    "wrong", [{"wait_s": -1}, {"max_customers": 0}, {"max_waiting": 0}, {"max_tokens": 0}, {"max_wait_s": 0}]
)
def test_senseless_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}\n  Input should be greater than"):
        Batching(**wrong)
