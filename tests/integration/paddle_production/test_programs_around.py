"""Functions and layers around a patched model under ``to_static(full_graph=True)``, when r changes."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref

import numpy as np
import paddle
import pytest
from adapters.test_paddle_only import STATIC

from paddle_production.models import CLAS, OWN_PLAIN, near
from tomecore.adapters import paddle as tome
from tomecore.errors import StaleProgramWarning

case_of = pytest.mark.parametrize("case", [OWN_PLAIN, CLAS], ids=lambda case: case.name)
LAYERS = []
SPEC = [paddle.static.InputSpec([None, 3, 32, 32], "float64")]


class Around(paddle.nn.Layer):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images) * 2


def around(kind, model):
    """A program that holds the model, and is none of its own."""
    if kind == "function":

        def doubled(images):
            return model(images) * 2

        return paddle.jit.to_static(doubled, input_spec=SPEC, full_graph=True)
    if kind == "method":
        layer = Around(model)
        LAYERS.append(layer)  # Paddle holds it weakly
        return paddle.jit.to_static(layer.forward, input_spec=SPEC, full_graph=True)
    return paddle.jit.to_static(Around(model), input_spec=SPEC, full_graph=True)


def expected(case, images, **settings):
    return 2 * case.fw.numpy(case.patched(depth=2, **settings)(images))


def right(program, images, wanted):
    near(program(images).numpy(), wanted, STATIC)


@case_of
@pytest.mark.parametrize("kind", ["function", "method", "layer"])
def test_r_changed_after_a_trace_around_the_model(case, kind):
    """One warning, and the new r counts; also when the model is patched again, and unpatched."""
    model, images = case.patched(depth=2, r=8), case.tensors(3)
    plain = 2 * case.fw.numpy(case.model(depth=2)(images))
    program = around(kind, model)
    right(program, images, expected(case, images, r=8))
    with pytest.warns(StaleProgramWarning, match="r was changed after to_static") as caught:
        model.r = 3
    assert caught[0].filename == __file__
    assert "traced again at their next call" in str(caught[0].message)
    right(program, images, expected(case, images, r=3))
    with warnings.catch_warnings():
        warnings.simplefilter("error", StaleProgramWarning)
        model.r = 0  # warns once
        right(program, images, expected(case, images, r=0))
        tome.apply_patch(model, r=8, prop_attn=False)
        right(program, images, expected(case, images, r=8, prop_attn=False))
        tome.remove_patch(model)
        right(program, images, plain)


def test_nothing_is_said_where_nothing_is_old(tmp_path):
    """The model's own program, one that was saved, one that is gone, and one not yet traced."""
    model, images = CLAS.patched(depth=2, r=8), CLAS.tensors()
    kept = around("function", model)
    gone = around("layer", model)
    gone(images)
    paddle.jit.save(Around(model), str(tmp_path / "around"), input_spec=SPEC)
    paddle.jit.save(model, str(tmp_path / "model"), input_spec=SPEC)
    del gone
    gc.collect()
    program = paddle.jit.to_static(model, input_spec=SPEC, full_graph=True)
    program(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error", StaleProgramWarning)
        model.r = 3
    near(program(images).numpy(), expected(CLAS, images, r=3) / 2, STATIC)
    right(kept, images, expected(CLAS, images, r=3))
    saved = paddle.jit.load(str(tmp_path / "around"))
    right(saved, images, expected(CLAS, images, r=8))


def test_nothing_is_kept_alive():
    """A model in a program around it dies with that, as an unpatched one does."""
    alive = []
    for r in (None, 8):
        model = CLAS.model(depth=2)
        if r is not None:
            tome.apply_patch(model, r=r)
        program = around("layer", model)
        program(CLAS.tensors())
        weak = weakref.ref(model)
        del model, program
        gc.collect()
        alive.append(weak() is not None)
    assert alive == [False, False]


def test_a_copy_of_the_model_is_in_no_program():
    model, images = CLAS.patched(depth=2, r=8), CLAS.tensors()
    program = around("function", model)
    wanted = program(images).numpy()
    other = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", StaleProgramWarning)
        other.r = 2
    assert np.array_equal(program(images).numpy(), wanted)
