"""Schedules that reach a target, without models; tests/adapters/test_wishes_of_models.py has models."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest

import tomecore as tc
from tomecore import schedule
from tomecore.errors import ArgumentTypeError, ArgumentValueError, NotPatchedError
from tomecore.schedule.arithmetic import Arithmetic, LayerArithmetic

#: ViT-S/16: 12 layers of 384, one class token
VIT_S = Arithmetic((LayerArithmetic(4 * 384**2, 8 * 384**2, 384),) * 12, 1, 768 * 384, 0, 384000)
RULE = pytest.mark.parametrize("rule", ["ratio", "constant", "early"])


class Handle:
    """The parts of ``model.tome`` that schedules read."""

    arithmetic = VIT_S
    protected = 1
    trim_last = False


class Patched:
    tome = Handle()


def least(num_layers, num_tokens, protected):
    """Tokens left where every layer merges what it can."""
    return tc.tokens_per_layer(num_layers, num_tokens, num_tokens, protected)[-1]


def test_ratio_by_hand():
    """90 % of 196 is 176.4; of 176: 158.4; of 158: 142.2; of 142: 127.8. One token is protected."""
    after = tc.tokens_per_layer(4, schedule.Ratio(0.9), 197, protected=1)
    assert after == [177, 159, 143, 129]


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9, 1, np.float32(0.75), np.int64(1)], ids=repr)
@pytest.mark.parametrize("free", [0, 1, 2, 3, 5, 10, 196])
def test_ratio_rounds_to_the_nearest_and_a_half_up(ratio, free):
    (merged,) = schedule.Ratio(ratio)(1, free + 2, 2)
    kept = free - merged
    assert abs(kept - ratio * free) <= 0.5
    assert kept != ratio * free - 0.5
    assert 0 <= merged <= free // 2


def test_fewer_tokens_than_protected():
    assert schedule.Ratio(0.5)(2, 1, 5) == [0, 0]
    assert schedule.ForTokens(1)(2, 1, 5) == [0, 0]


@pytest.mark.parametrize("ratio", [0.49, 1.01, 0, -1, float("nan"), float("inf")], ids=repr)
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(
        ArgumentValueError, match=r"from 0\.5 to 1, because a layer merges at most half"
    ):
        schedule.Ratio(ratio)


@pytest.mark.parametrize("ratio", ["0.9", None, True, [0.9]], ids=repr)
def test_a_ratio_must_be_a_number(ratio):
    with pytest.raises(ArgumentTypeError, match="`ratio` must be a number; got"):
        schedule.Ratio(ratio)


@pytest.mark.parametrize(
    ("last", "amounts"),
    [(98, [9] * 3 + [8] * 9), (197, [0] * 12), (196, [1] + [0] * 11)],
)
def test_tokens_by_hand(last, amounts):
    assert schedule.ForTokens(last, "constant")(12, 197, 1) == amounts


def test_where_the_last_layers_cannot_merge_as_many_the_others_merge_more():
    """192 tokens are 16 for each layer, but the last would have to merge 16 of 20."""
    amounts = schedule.ForTokens(5, "constant")(12, 197, 1)
    assert 197 - sum(amounts) == 5
    assert amounts[0] > 16 > amounts[-1]
    assert amounts == sorted(amounts, reverse=True)


@RULE
@pytest.mark.parametrize(
    ("num_layers", "num_tokens", "protected"),
    list(itertools.product([1, 2, 5], [1, 2, 9, 30], [0, 1, 3])),
)
def test_every_possible_number_of_tokens_is_met(num_layers, num_tokens, protected, rule):
    used = min(4, num_layers) if rule == "early" else num_layers
    low = least(used, num_tokens, protected)
    for last in range(low, num_tokens + 1):
        amounts = schedule.ForTokens(last, rule)(num_layers, num_tokens, protected)
        assert not any(amounts[used:])
        assert len(amounts) == num_layers
        assert all(type(one) is int for one in amounts)
        after = tc.tokens_per_layer(num_layers, amounts, num_tokens, protected)
        assert after[-1] == last == num_tokens - sum(amounts)  # nothing is clamped
    for last in (low - 1, num_tokens + 1):
        with pytest.raises(ArgumentValueError, match=f"at least {low} and at most {num_tokens}"):
            schedule.ForTokens(last, rule)(num_layers, num_tokens, protected)


@pytest.mark.parametrize("speedup", [1, 1.2, 1.5, 2.0, 3.0, 4.0])
def test_a_constant_speedup_is_reached_with_the_fewest_tokens(speedup):
    amounts = schedule.ForSpeedup(speedup, VIT_S, "constant")(12, 197, 1)
    assert VIT_S.limit(197, amounts) >= speedup
    merged = sum(amounts)
    if merged:  # one token less, in every way to spread it evenly, is not enough
        less = schedule.ForTokens(197 - merged + 1, "constant")(12, 197, 1)
        assert VIT_S.limit(197, less) < speedup


@pytest.mark.parametrize("num_tokens", [5, 50, 197, 577])
@pytest.mark.parametrize("speedup", [1, 1.03, 1.5, 2.0, 3.0])
def test_the_largest_share_that_reaches_a_speedup(speedup, num_tokens):
    """The schedule changes only at the shares (2 k + 1) / (2 f); of all of them, this is the largest."""
    steps = sorted(
        {(2 * k + 1) / (2 * f) for f in range(1, num_tokens) for k in range(f // 2, f)} | {0.5, 1.0}
    )
    reach = [q for q in steps if VIT_S.limit(num_tokens, schedule.Ratio(q)) >= speedup]
    if not reach:
        with pytest.raises(ArgumentValueError, match=r"rule 'ratio' is .* times faster"):
            schedule.ForSpeedup(speedup, VIT_S, "ratio")(12, num_tokens, 1)
        return
    amounts = schedule.ForSpeedup(speedup, VIT_S, "ratio")(12, num_tokens, 1)
    assert amounts == schedule.Ratio(max(reach))(12, num_tokens, 1)
    assert VIT_S.limit(num_tokens, amounts) >= speedup


def test_early_merges_equal_shares_in_four_layers():
    amounts = schedule.ForSpeedup(2.0, VIT_S, "early")(12, 197, 1)
    assert VIT_S.limit(197, amounts) >= 2
    assert amounts[4:] == [0] * 8
    free, kept = 196, []
    for merged in amounts[:4]:
        kept.append((free - merged) / free)
        free -= merged
    assert max(kept) - min(kept) < 0.01


def test_what_constant_reaches_the_default_reaches():
    for num_tokens in (5, 17, 197):
        for rule in ("constant", "ratio"):
            most = VIT_S.limit(num_tokens, num_tokens)
            reached = schedule.ForSpeedup(most, VIT_S, rule)
            assert VIT_S.limit(num_tokens, reached(12, num_tokens, 1)) == most


def test_a_rule_must_be_known():
    for ask in (schedule.for_speedup, schedule.for_tokens):
        with pytest.raises(
            ArgumentValueError, match=r"'ratio', 'constant', 'early', or None.*'even'"
        ):
            ask(Patched(), 2, rule="even")
        with pytest.raises(ArgumentTypeError, match=r"`rule` must be .*got 3"):
            ask(Patched(), 2, rule=3)
        assert ask(Patched(), 2) == ask(Patched(), 2, "ratio") != ask(Patched(), 2, "constant")


def test_an_object_that_was_pickled_before_there_were_rules_keeps_its_schedule():
    former = schedule.ForSpeedup(2.0, VIT_S, "ratio")
    del vars(former)["rule"]
    again = pickle.loads(pickle.dumps(former))
    assert again(12, 197, 1) == schedule.ForSpeedup(2.0, VIT_S, "constant")(12, 197, 1)


def test_a_speedup_of_2():
    """The paper's r = 16, whose last layer has only 21 tokens left, and can merge 10."""
    amounts = schedule.ForSpeedup(2.0, VIT_S, "constant")(12, 197, 1)
    assert amounts[:9] == [16] * 9
    assert 10 <= 197 - sum(amounts) <= 20


@RULE
def test_an_impossible_speedup_names_the_largest(rule):
    most = VIT_S.limit(197, [197] * (4 if rule == "early" else 12))
    with pytest.raises(
        ArgumentValueError, match=f"arithmetic limit is {int(most * 100) / 100:.2f}"
    ):
        schedule.ForSpeedup(100.0, VIT_S, rule)(12, 197, 1)
    assert sum(schedule.ForSpeedup(int(most * 100) / 100, VIT_S, rule)(12, 197, 1)) > 180


def test_a_speedup_is_for_its_model():
    with pytest.raises(ArgumentValueError, match=r"12 layers and 1 protected.*24 layers and 1"):
        schedule.ForSpeedup(2.0, VIT_S)(24, 197, 1)
    with pytest.raises(ArgumentValueError, match=r"12 layers and 1 protected.*12 layers and 2"):
        schedule.ForSpeedup(2.0, VIT_S)(12, 197, 2)


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        (schedule.Ratio(0.9), "Ratio(ratio=0.9)"),
        (schedule.ForTokens(98), "ForTokens(last=98, rule='constant')"),
        (schedule.ForSpeedup(2.0, VIT_S, "early"), "ForSpeedup(speedup=2.0, rule='early')"),
    ],
    ids=str,
)
def test_wishes_are_values(wish, text):
    assert repr(wish) == text
    assert pickle.loads(pickle.dumps(wish)) == wish == copy.deepcopy(wish)
    assert isinstance(wish, schedule.Schedule)
    assert tc.parse_r(12, wish, num_tokens=197, protected=1) == wish(12, 197, 1)
    with pytest.raises(ArgumentValueError, match="depends on the number of tokens"):
        tc.parse_r(12, wish)


@pytest.mark.parametrize("ask", [schedule.for_tokens, schedule.for_speedup])
@pytest.mark.parametrize("model", [None, 12, "timm:vit"], ids=repr)
def test_what_is_no_patched_model(ask, model):
    with pytest.raises(NotPatchedError, match="call apply_patch"):
        ask(model, 2)


@pytest.mark.parametrize("function", [schedule.for_speedup, schedule.for_tokens])
def test_swapped_arguments_are_named(function):
    with pytest.raises(
        NotPatchedError, match=r"`model`, the first argument, must be .*; got 2\.0\."
    ):
        function(2.0, Patched())


def test_one_token_never_merges():
    with pytest.raises(
        ArgumentValueError, match="at least 2: 1 token of this model never merges, and"
    ):
        schedule.for_tokens(Patched(), 1)
