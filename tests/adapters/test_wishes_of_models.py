"""Schedules that reach a target, on models of both frameworks; and the warning if a target is clamped."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings

import numpy as np
import paddle
import pytest
import torch

import tomecore as tc
from adapters.frameworks import TORCH
from adapters.test_paddle_only import same, static
from tomecore import schedule
from tomecore.errors import ArgumentTypeError, ArgumentValueError, ClampWarning, NotPatchedError

WISHES = {
    "ratio": lambda model: schedule.Ratio(0.8),
    "tokens": lambda model: schedule.for_tokens(model, last=21),
    "speedup": lambda model: schedule.for_speedup(model, 1.5),
    "constant": lambda model: schedule.for_speedup(model, 1.5, rule="constant"),
}
EVERY_WISH = pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)


@EVERY_WISH
def test_a_wish_is_set_before_any_forward_and_never_clamped(own, wish):
    model = own.patched()
    model.r = made = wish(model)
    assert model.r is made
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClampWarning)
        output = own.fw.forward(model, own.images())
    tokens = own.num_tokens()
    assert model.tome.schedule == made(4, tokens, own.prefix)
    assert model.tome.tokens == tc.tokens_per_layer(4, made, tokens, own.prefix)
    assert model.tome.tokens[-1] == tokens - sum(model.tome.schedule)  # nothing was clamped
    listed = own.patched(r=model.tome.schedule)
    assert np.array_equal(output, own.fw.forward(listed, own.images()))


def test_what_was_wished_is_what_comes(own):
    model, images = own.patched(), own.images()
    model.r = schedule.for_tokens(model, last=21)
    own.fw.forward(model, images)
    assert model.tome.tokens[-1] == 21
    model.r = schedule.for_speedup(model, 1.5)
    own.fw.forward(model, images)
    assert model.tome.arithmetic.limit(own.num_tokens(), model.tome.schedule) >= 1.5


@EVERY_WISH
def test_copies_and_pickles_keep_the_wish(plain, wish):
    model, images = plain.patched(), plain.images()
    model.r = wish(model)
    expected = plain.fw.forward(model, images)
    copied = copy.deepcopy(model)
    assert copied.r == model.r
    assert np.array_equal(plain.fw.forward(copied, images), expected)
    assert pickle.loads(pickle.dumps(model.r)) == model.r


@EVERY_WISH
def test_a_wish_follows_the_number_of_tokens(plain, wish):
    small = plain.patched(size=24)
    small.r = wish(small)
    plain.fw.forward(small, plain.images(size=24))
    assert small.tome.schedule == small.r(4, 37, 1) != small.r(4, 65, 1)


def test_impossible_wishes_are_errors_that_name_what_is_possible(plain):
    model = plain.patched(size=8)  # 5 tokens: 4 patches, of which one is left at the end
    with pytest.raises(
        ArgumentValueError, match="`last` must be at least 2: 1 token of this model never merges"
    ):
        schedule.for_tokens(model, last=1)
    for bad in (0.5, 0, -1, float("nan"), float("inf")):
        with pytest.raises(ArgumentValueError, match="finite number of at least 1"):
            schedule.for_speedup(model, bad)
    for bad in ("2x", None, True):
        with pytest.raises(ArgumentTypeError, match="`speedup` must be a number"):
            schedule.for_speedup(model, bad)
        with pytest.raises(ArgumentTypeError, match="`last` must be an integer"):
            schedule.for_tokens(model, last=bad)
    model.r = schedule.for_tokens(model, last=6)
    with pytest.raises(ArgumentValueError, match="at least 2 and at most 5"):
        plain.fw.forward(model, plain.images(size=8))
    model.r = schedule.for_speedup(model, 50)
    with pytest.raises(
        ArgumentValueError, match=r"50 times faster: with 5 tokens.*limit is 1\.\d\d"
    ):
        plain.fw.forward(model, plain.images(size=8))
    model.r = 0
    plain.fw.forward(model, plain.images(size=8))


def test_an_unpatched_model_is_refused(plain):
    for ask in (schedule.for_tokens, schedule.for_speedup):
        with pytest.raises(NotPatchedError, match=r"VisionTransformer is not patched; call apply"):
            ask(plain.model(), 2)


@pytest.mark.graph
@EVERY_WISH
@torch.no_grad()
def test_one_graph_of_torch(wish):
    model = TORCH.tome.apply_patch(_vit())
    model.r = wish(model)
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    expected = model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected, rtol=0, atol=1e-12)
    program = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(program(x), expected, rtol=0, atol=1e-12)


@pytest.mark.graph
@EVERY_WISH
@pytest.mark.parametrize("full_graph", [True, False], ids=["ast", "sot"])
@paddle.no_grad()
def test_a_static_graph_of_paddle(wish, full_graph):
    from adapters.cases import OWN

    (case,) = [one for one in OWN if one.name == "paddle-plain"]
    model, images = case.patched(), case.tensors()
    model.r = wish(model)
    expected = model(images).numpy()
    same(static(model, full_graph), images, expected)


def _vit():
    from adapters.cases import OWN

    (case,) = [one for one in OWN if one.name == "torch-plain"]
    return case.model()


def clamps(caught):
    return [str(one.message) for one in caught if one.category is ClampWarning]


@pytest.fixture
def caught():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


def test_a_clamp_warns_once_and_says_how_to_silence_it(own, caught):
    model, images = own.patched(r=[10, 30, 9]), own.images(1)
    tokens, prefix = own.num_tokens(), own.prefix
    for _ in range(3):
        own.fw.forward(model, images)
    (message,) = clamps(caught)
    most = (tokens - 10 - prefix) // 2
    assert "layer 1 (of 0 to 3) should merge 30" in message
    assert (
        f"of {tokens - 10} tokens, {prefix} of them protected, but merges only {most}." in message
    )
    assert f"{tokens - 19 - most} are left at the end" in message
    silent = f"[10, {most}, 9, 0]"
    assert f"model.r = {silent}" in message
    del caught[:]
    model.r = [10, most, 9, 0]
    own.fw.forward(model, images)
    assert model.tome.tokens[-1] == tokens - 19 - most
    assert clamps(caught) == []


def test_the_same_wish_does_not_warn_again_and_another_does(plain, caught):
    model, images = plain.patched(r=40), plain.images(1)
    for r, warned in ((40, 1), (2, 1), (40, 1), ([40] * 4, 1), (41, 2), ((3, -1), 2), (40, 2)):
        model.r = r
        plain.fw.forward(model, images)
        assert len(clamps(caught)) == warned
    other = plain.patched(r=40)
    plain.fw.forward(other, images)
    assert len(clamps(caught)) == 3
    assert "and so on in 3 more layers" in clamps(caught)[0]


def test_fewer_tokens_may_clamp_what_did_not_before(plain, caught):
    model = plain.patched(r=[9])
    x = plain.entering(model, plain.images(1))
    for tokens, warned in ((65, 0), (19, 0), (18, 1), (17, 1)):
        run_blocks(model, x[:, :tokens])
        assert len(clamps(caught)) == warned
    assert "merge 9 of 18 tokens, 1 of them protected, but merges only 8." in clamps(caught)[0]


def run_blocks(model, x):
    for block in model.blocks:
        x = block(x)


def test_a_schedule_object_may_be_clamped_too(plain, caught):
    model, images = plain.patched(r=lambda *asked: [1000]), plain.images(1)
    for _ in range(2):
        plain.fw.forward(model, images)
    (message,) = clamps(caught)
    assert "merges only 32" in message


def test_a_warning_made_an_error_leaves_the_model_usable(plain):
    model, images = plain.patched(r=40), plain.images(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClampWarning)
        with pytest.raises(ClampWarning):
            plain.fw.forward(model, images)
    model.r = 2
    plain.fw.forward(model, images)
    assert model.tome.tokens[-1] == plain.num_tokens() - 8


def test_threads_share_one_warning(plain, caught):
    model, images = plain.patched(r=40), plain.images(1)
    threads = [threading.Thread(target=plain.fw.forward, args=(model, images)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(clamps(caught)) <= 4
    del caught[:]
    plain.fw.forward(model, images)
    assert clamps(caught) == []


@pytest.mark.graph
@torch.no_grad()
def test_a_traced_forward_does_not_warn(caught):
    model = TORCH.tome.apply_patch(_vit(), r=40)
    torch._dynamo.reset()
    torch.compile(model, fullgraph=True, backend="eager")(
        torch.randn(1, 3, 32, 32, dtype=torch.float64)
    )
    assert clamps(caught) == []
