"""Law 11: changes of r, threads and lost sizes do not mix passes up."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import tomecore as tc
from adapters.laws.base import ForEachCase
from tomecore.errors import (
    LostStateError,
)

TEXT = (
    r"got tokens of shape \(\d, \d+, 32\) without their sizes\. .*pass that same tensor on .*"
    r"or set model\.r = 0"
)


def in_lock_step(fw, blocks, runs):
    """Run each function in a thread; no thread enters a block before all have reached it."""
    barrier = threading.Barrier(len(runs), timeout=60)

    def wait(*_):
        barrier.wait()

    hooks = [fw.pre_hook(block, wait) for block in blocks]
    results = [None] * len(runs)

    def work(place, function):
        try:
            results[place] = function()
        except BaseException as error:
            results[place] = error
            barrier.abort()

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    for hook in hooks:
        hook.remove()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


class State(ForEachCase):
    """State that belongs to one pass."""

    @pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
    def test_r_may_change_between_calls(self, case):
        model, images = case.patched(trace_source=True), case.images()
        fresh = {r: case.fw.forward(case.patched(r=r), images) for r in (0, 4, 16)}
        for r in (4, 0, 16, 4, 16, 0):
            model.r = r
            assert np.array_equal(case.fw.forward(model, images), fresh[r])
            expected = tc.tokens_per_layer(4, r, case.num_tokens(), protected=case.prefix)
            assert model.tome.tokens == expected

    @pytest.mark.parametrize("layer", [0, 2])
    def test_a_hook_that_returns_a_new_tensor(self, case, layer):
        fw, model = case.fw, case.patched(r=8)

        def anew(module, args, y):
            return (y[0] * 1,) if isinstance(y, tuple) else y * 1

        hook = fw.post_hook(case.blocks(model)[layer], anew)
        with pytest.raises(LostStateError, match=TEXT):
            fw.forward(model, case.images())
        hook.remove()
        assert np.isfinite(fw.forward(model, case.images())).all()

    def test_threads_that_share_a_model(self, case):
        fw, model = case.fw, case.patched(r=8, trace_source=True)

        def results(seed):
            output = fw.forward(model, case.images(seed=seed))
            return output, fw.numpy(model.tome.sizes), fw.numpy(model.tome.source)

        expected = [results(seed) for seed in range(3)]
        assert not np.array_equal(expected[0][2], expected[1][2])
        runs = [lambda seed=seed: results(seed) for seed in range(3)]
        got = in_lock_step(fw, case.blocks(model), runs)
        for mine, alone in zip(got, expected, strict=True):
            for array, other in zip(mine, alone, strict=True):
                assert np.array_equal(array, other)
