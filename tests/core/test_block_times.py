"""Times of schedules, from times of others: the model of time that ``cost="measured"`` uses."""

from __future__ import annotations

import pytest

from tomecore.schedule import ForSpeedup
from tomecore.schedule.arithmetic import Arithmetic, LayerArithmetic
from tomecore.schedule.measured import block_times, share_before, time_in_turn, timed_schedules
from tomecore.schedule.rules import clamp_schedule

VIT_S = Arithmetic((LayerArithmetic(4 * 384**2, 8 * 384**2, 384),) * 12, 1, 768 * 384, 0, 384000)
BLOCK, MERGE = 1e-5, 1.5e-4


def seconds(r):
    """A machine: a block takes 10 microseconds for each token, a merge 150 microseconds."""
    tokens, total = 197, 1e-3
    for merged in r:
        share = share_before(VIT_S, 0, tokens)
        total += BLOCK * (share * tokens + (1 - share) * (tokens - merged))
        total += MERGE if merged else 0.0
        tokens -= merged
    return total


def test_times_are_explained():
    schedules = timed_schedules(12, 197, 1)
    times = block_times(VIT_S, 197, schedules, [seconds(r) for r in schedules])
    assert times.merge[0] == pytest.approx(MERGE, rel=0.02)
    assert times.saving(140) == pytest.approx(57 * BLOCK, rel=0.02)
    assert times.seconds([0] * 12) == pytest.approx(seconds([0] * 12))
    for rule in ("ratio", "constant", "early"):
        r = ForSpeedup(2.0, VIT_S, rule)(12, 197, 1)
        assert times.seconds(r) == pytest.approx(seconds(r), rel=0.02)


@pytest.mark.parametrize("num_tokens", [2, 5, 17, 65, 197])
@pytest.mark.parametrize("num_layers", [1, 2, 4, 12])
def test_every_schedule_that_is_timed_can_merge(num_layers, num_tokens):
    schedules = timed_schedules(num_layers, num_tokens, 1)
    assert schedules[0] == [0] * num_layers
    for r in schedules[2:-1]:
        assert clamp_schedule(r, num_tokens, 1) == r
    arithmetic = Arithmetic(VIT_S.layers[:num_layers], 1, 0, 0, 0)
    found = block_times(arithmetic, num_tokens, schedules, [1.0] * len(schedules))
    assert found.seconds([0] * num_layers) == 1


def test_calls_take_turns():
    called = []
    rounds = list(time_in_turn(called.append, [[1], [2]], rounds=2))
    assert called == [[1], [2], [1], [2], [2], [1]]
    assert [len(one) for one in rounds] == [2, 2]
    assert all(second >= 0 for one in rounds for second in one)
