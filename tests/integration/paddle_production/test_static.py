"""Static graphs and what is served from them, on the libraries' classes: equal to dygraph."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from adapters.test_paddle_only import STATIC, same, static

from paddle_production.models import CLAS, DISTILLED, PPIM, near
from tomecore.adapters import paddle as tome
from tomecore.errors import NotPatchedError

FULL = pytest.mark.parametrize("full_graph", [True, False], ids=["ast", "sot"])


def unpatched(case, model):
    """Return everything that removing must restore; SOT itself leaves methods on the leaves it has seen."""
    assert "forward" not in vars(model)
    assert all("forward" not in vars(block) for block in case.blocks(model))
    return {
        path: (found[0], found[2]) if isinstance(found, tuple) else found
        for path, found in case.fw.fingerprint(model).items()
    }


def expected_of(case, images, **settings):
    return case.fw.numpy(case.patched(depth=2, **settings)(images))


@FULL
def test_r_changed_after_tracing(full_graph):
    """A traced program knew the old r for ever; now the model is traced again."""
    images = CLAS.tensors(3)
    model = CLAS.patched(depth=2, r=8)
    program = static(model, full_graph)
    for r, owner in ((8, model), (0, model), ((6, -1), model.tome)):
        owner.r = r
        same(program, images, expected_of(CLAS, images, r=r))


@FULL
@pytest.mark.parametrize("traced", ["patched", "unpatched"])
def test_settings_changed_after_tracing(traced, full_graph):
    """Patching again changes settings: the model stays the same program, and is traced again."""
    images, model = CLAS.tensors(3), CLAS.model(depth=2)
    plain, before = model(images).numpy(), unpatched(CLAS, model)
    if traced == "patched":
        tome.apply_patch(model, r=8)
    static(model, full_graph)(images)
    program = vars(model)["forward"]
    if traced == "unpatched":
        tome.apply_patch(model, r=8)
    for settings in ({"r": 8}, {"r": 8, "prop_attn": False}, {"r": (6, -1)}):
        tome.apply_patch(model, **settings)
        assert vars(model)["forward"] is program
        same(model, images, expected_of(CLAS, images, **settings))
    if full_graph:
        assert len(program.program_cache) > 0  # it really ran as one
    tome.remove_patch(model)
    assert unpatched(CLAS, model) == before
    assert np.array_equal(model(images).numpy(), plain)


@FULL
def test_patched_after_tracing_and_unpatched_again(full_graph):
    images, model = CLAS.tensors(3), CLAS.model(depth=2)
    plain = model(images).numpy()
    before = unpatched(CLAS, model)
    same(static(model, full_graph), images, plain)
    tome.apply_patch(model, r=8)
    same(model, images, expected_of(CLAS, images, r=8))
    tome.remove_patch(model)
    assert unpatched(CLAS, model) == before
    assert np.array_equal(model(images).numpy(), plain)
    with pytest.raises(NotPatchedError):
        tome.handle(model)


@FULL
@pytest.mark.parametrize("case", [CLAS, PPIM], ids=lambda case: case.name)
def test_removed_after_tracing(case, full_graph):
    """Not only the outputs: traced once more, it is the program of the unpatched model."""
    images, model = case.tensors(3), case.model(depth=2)
    plain, before = model(images).numpy(), unpatched(case, model)
    tome.apply_patch(model, r=8)
    static(model, full_graph)(images)
    tome.remove_patch(model)
    assert unpatched(case, model) == before
    assert np.array_equal(model(images).numpy(), plain)
    same(static(model, full_graph), images, plain)


def predictor(path):
    """The predictor as it comes: oneDNN, and every pass."""
    config = paddle.inference.Config(path + ".json", path + ".pdiparams")
    config.disable_glog_info()
    return paddle.inference.create_predictor(config)


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@pytest.mark.parametrize("r", [8, [0, 8, 40]], ids=str)
@pytest.mark.parametrize("case", [CLAS, DISTILLED, PPIM], ids=lambda case: case.name)
def test_saved_loaded_and_served(case, r, tmp_path):
    """``jit.save`` of a patched model -> ``jit.load``, and the default predictor; batches 1 to 5."""
    model = case.fw.single(case.patched(depth=3, r=r))
    path = str(tmp_path / "vit")
    spec = [paddle.static.InputSpec([None, 3, 32, 32], "float32")]
    paddle.jit.save(model, path, input_spec=spec)
    loaded, served = paddle.jit.load(path), predictor(path)
    for batch in (1, 2, 3, 5):
        images = paddle.to_tensor(case.images(batch).astype("float32"))
        expected = model(images).numpy()
        near(loaded(images), expected, 1e-5)
        near(served.run([images])[0].numpy(), expected, 1e-5)
    assert np.abs(expected).max() > 0.1


def test_a_saved_program_keeps_its_r(tmp_path):
    """Saved again, it is the new one."""
    model, images = CLAS.patched(depth=2, r=8), CLAS.tensors()
    spec = [paddle.static.InputSpec([None, 3, 32, 32], "float64")]
    for r in (8, 3):
        model.r = r
        paddle.jit.save(model, str(tmp_path / f"{r}"), input_spec=spec)
    for r in (8, 3):
        loaded = paddle.jit.load(str(tmp_path / f"{r}"))
        near(loaded(images), expected_of(CLAS, images, r=r), STATIC)


def test_gradients_of_a_library_s_class_through_a_static_graph():
    model, images = CLAS.patched(depth=2, r=8), CLAS.tensors()
    model.train()
    expected = CLAS.fw.gradients(model, lambda: (model(images) ** 2).sum())
    program = static(model)
    near(CLAS.fw.gradients(model, lambda: (program(images) ** 2).sum()), expected, STATIC)
