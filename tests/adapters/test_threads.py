"""Law 11: threads, several models, train and eval do not meet each other."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tomecore.errors import LostStateError


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


def test_threads_that_share_a_model(case):
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


def test_threads_that_differ_in_batch_size(plain):
    fw, model = plain.fw, plain.patched(r=8)
    expected = [fw.forward(model, plain.images(n, seed=n)) for n in (1, 2)]
    runs = [lambda n=n: fw.forward(model, plain.images(n, seed=n)) for n in (1, 2)]
    for mine, alone in zip(in_lock_step(fw, model.blocks, runs), expected, strict=True):
        assert np.array_equal(mine, alone)


def test_gradients_in_threads_that_share_a_model(plain):
    """Each thread asks for the gradient of its own images, which no other thread touches."""
    fw, model = plain.fw, plain.patched(r=8)

    def gradient(seed):
        images = plain.tensors(seed=seed)
        fw.require_gradient(images)
        (model(images) ** 2).sum().backward()
        return fw.numpy(images.grad).copy()

    expected = [gradient(seed) for seed in (0, 1)]
    got = in_lock_step(fw, model.blocks, [lambda seed=seed: gradient(seed) for seed in (0, 1)])
    for mine, alone in zip(got, expected, strict=True):
        assert np.array_equal(mine, alone)


def test_two_models_do_not_share_settings_or_results(case):
    fw, images = case.fw, case.images()
    first, second = case.patched(r=8), case.patched(r=2, prop_attn=False)
    alone = fw.forward(first, images), fw.forward(second, images)
    assert first.tome.tokens[-1] == case.num_tokens() - 32
    assert second.tome.tokens[-1] == case.num_tokens() - 8
    second.r = 0
    assert first.r == 8
    assert np.array_equal(fw.forward(first, images), alone[0])
    fw.tome.remove_patch(second)
    assert np.array_equal(fw.forward(first, images), alone[0])


def test_the_output_of_one_model_may_feed_another(plain):
    """What rides on an activation belongs to one model, and a second one does not take it."""
    fw = plain.fw
    first, second = plain.patched(r=8), plain.patched(r=3)
    x = fw.tokens(first, plain.images())
    alone = fw.numpy(blocks(second, fw.tensor(fw.numpy(blocks(first, x)))))
    assert np.array_equal(fw.numpy(blocks(second, blocks(first, x))), alone)
    y = first.blocks[0](x)
    with pytest.raises(LostStateError, match="without their sizes"):
        second.blocks[1](y)


def blocks(model, x):
    for block in model.blocks:
        x = block(x)
    return x


def test_train_and_eval_differ_by_dropped_paths_only(case):
    fw, model, images = case.fw, case.patched(r=8), case.images()
    evaluated = fw.forward(model, images)
    model.train()
    trained = fw.forward(model, images)
    assert np.array_equal(trained, evaluated) is not case.drops
    model.eval()
    assert np.array_equal(fw.forward(model, images), evaluated)
