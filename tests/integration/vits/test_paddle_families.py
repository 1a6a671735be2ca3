"""Paddle families beyond the plain ViT: static graphs, dense readers, their limits."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from adapters.cases import TINY
from adapters.frameworks import PADDLE
from adapters.laws.exactness import both_halves
from adapters.test_paddle_only import same, static
from paddle import nn

from tomecore.adapters import paddle as tome
from tomecore.adapters.engine.find import find_tower
from tomecore.adapters.engine.spec import attributes
from tomecore.errors import UnsupportedModelError
from vits.cases import case_named
from vits.of_paddle import MORE
from vits.test_paddle_libraries import moved
from vits.twins.passl.models.dinov2.dinov2_vit import DINOv2VisionTransformer

paddle_case = pytest.mark.parametrize("case", MORE, ids=lambda case: case.name)


@paddle_case
def test_a_static_graph_computes_the_same(case):
    """A static graph of r = 8 in the first layer, so that biases and sizes of merged tokens matter."""
    model, images = case.patched(depth=2, r=8), case.tensors(3)
    expected = PADDLE.numpy(model(images))
    same(static(model), images, expected)
    assert model.tome._config.traced_state is None


@paddle_case
def test_hooks_on_what_is_bypassed(case):
    model = case.model()
    spec, _, blocks = find_tower(tome.HOST, tome.SPECS, model)
    for path in spec.bypasses:
        (module,) = attributes(blocks[1], path)
        hook = PADDLE.pre_hook(module, lambda *_: None)
        with pytest.raises(UnsupportedModelError, match=rf"\[1\]\.{path} has forward hooks"):
            tome.apply_patch(model, r=8)
        hook.remove()
    tome.apply_patch(model, r=8)
    PADDLE.pre_hook(attributes(case.blocks(model)[1], spec.bypasses[0])[0], lambda *_: None)
    with pytest.raises(UnsupportedModelError, match=r"\[1\] .* has a forward hook"):
        model(case.tensors())


REASONS = {
    "foundation-clip-16": "drops its class token and reads the first patch",
    "foundation-unicom": r"lays all patches side by side \(feature_frame\)",
    "passl-mae-pooled": "the model pools over tokens",
    "passl-mae-pretraining": "has a decoder, which puts its tokens back by position",
    "paddleseg-vit": "returns the tokens of every block as a grid",
    "paddleseg-cae": "returns the tokens of every block as a grid",
    "paddleseg-cae-shared": "returns the tokens of every block as a grid",
}


@paddle_case
def test_without_restore(case):
    """The same numbers come out, or it is refused because they would not."""
    model, images = case.model(), case.images()
    assert case.pooled is (case.name in REASONS)
    if case.pooled:
        with pytest.raises(UnsupportedModelError, match=REASONS[case.name]):
            tome.apply_patch(model, r=8, restore=False)
    else:
        expected = PADDLE.forward(case.patched(r=8), images)
        assert np.array_equal(
            PADDLE.forward(tome.apply_patch(model, r=8, restore=False), images), expected
        )


@pytest.mark.parametrize("name", ["passl-vit", "passl-distilled", "passl-mae-pooled"])
def test_plsc_is_passl_under_another_name(name):
    case = case_named(name)
    model, images = case.model(), case.images()
    expected, classes = PADDLE.forward(case.patched(r=8), images), {}
    for layer in PADDLE.modules(model).values():
        if ".passl." in type(layer).__module__:
            path = f"plsc.{type(layer).__module__.partition('.passl.')[2]}"
            layer.__class__ = classes.setdefault(type(layer), moved(type(layer), path))
    assert len(classes) >= 4
    tome.apply_patch(model, r=8)
    assert np.array_equal(PADDLE.forward(model, images), expected)
    assert model.tome.prop_attn is case.prop_attn


# ---- PaddleClas foundation_vit


def test_the_fused_attention_of_the_library():
    """It needs a GPU only in its constructor; it leaves attn.scale out, and so do the halves."""
    case = case_named("foundation-eva")
    model = case.model()
    spec, _, blocks = find_tower(tome.HOST, tome.SPECS, model)
    x = case.entering(model, case.images())
    assert blocks[0].attn.scale == 0.2
    usual = PADDLE.numpy(blocks[0](x))
    blocks[0].attn.use_fused_attn = True
    whole = PADDLE.numpy(blocks[0](x))
    assert not np.allclose(whole, usual)
    halves = PADDLE.numpy(both_halves(PADDLE, spec, blocks[0], x, {}))
    np.testing.assert_allclose(halves, whole, rtol=0, atol=1e-13 * np.abs(whole).max())


def test_a_shared_bias_that_the_library_may_ignore_is_refused():
    case = case_named("foundation-clip")
    model = case.patched(r=8)
    x = case.entering(model, case.images())
    bias = paddle.zeros([4, case.num_tokens(), case.num_tokens()], dtype="float64")
    with pytest.raises(UnsupportedModelError, match=r"was called with rel_pos_bias="):
        model.blocks[0](x, rel_pos_bias=bias)


def test_keys_of_cae_have_no_bias():
    """Attention does not see a bias of keys, which shifts all scores of a query; the matching would."""
    case = case_named("paddleseg-cae")
    model = case.model()
    spec, _, blocks = find_tower(tome.HOST, tome.SPECS, model)
    x = case.entering(model, case.images())
    _, key = spec.attend(tome.HOST, blocks[0], x, None, {})
    expected = blocks[0].norm1(x) @ blocks[0].attn.qkv.weight[:, 32:64]
    np.testing.assert_allclose(
        PADDLE.numpy(key).reshape(expected.shape), PADDLE.numpy(expected), rtol=0, atol=1e-12
    )


# ---- dense readers


@pytest.mark.parametrize("name", ["passl-dino", "passl-dinov2"])
def test_intermediate_layers_have_all_tokens(name):
    case = case_named(name)
    images = case.tensors()
    model = getattr(case.model(), "model", case.model())
    before = model.get_intermediate_layers(images, n=3)
    tome.apply_patch(model, r=8)
    for old, new in zip(before, model.get_intermediate_layers(images, n=3), strict=True):
        assert old.shape == new.shape
        assert not np.allclose(PADDLE.numpy(old), PADDLE.numpy(new))
    assert model.tome.tokens == [57, 49, 41, 33]
    short = []
    PADDLE.post_hook(model.blocks[0], lambda m, a, y: short.append(y.shape[1]))
    model(images)
    assert short == [57]
    with model.tome.all_tokens():
        model.get_intermediate_layers(images)
        model(images)
    assert short == [57, 65, 65]


def test_intermediate_layers_as_grids():
    model = case_named("passl-dinov2").patched(r=8).model
    grids = model.get_intermediate_layers(case_named("passl-dinov2").tensors(), n=2, reshape=True)
    assert [grid.shape for grid in grids] == [[3, 32, 8, 8]] * 2


# ---- what cannot be


def test_attention_maps_of_dino():
    case = case_named("passl-dino")
    images, expected = case.tensors(), case.model().get_last_selfattention(case.tensors())
    model = case.patched()
    assert np.array_equal(
        PADDLE.numpy(model.get_last_selfattention(images)), PADDLE.numpy(expected)
    )
    model.r = 8
    with pytest.raises(UnsupportedModelError, match="was called with return_attention="):
        model.get_last_selfattention(images)


@pytest.mark.parametrize("rate", [0.1, 0.2])
def test_drop_path_of_dinov2(rate):
    """Up to 0.1 halves and block draw the same; above, the library itself fails."""
    case = case_named("passl-dinov2")
    model = DINOv2VisionTransformer(img_size=32, depth=3, drop_path_rate=rate, **TINY)
    model = PADDLE.prepare(model)
    spec, _, blocks = find_tower(tome.HOST, tome.SPECS, model)
    x = case.entering(case.model(), case.images(8))
    model.train()
    if rate > 0.1:
        with pytest.raises(UnsupportedModelError, match=r"drop_path=0\.2 fails in the library"):
            both_halves(PADDLE, spec, blocks[-1], x, {})
        return
    differ = 0
    for number in range(8):
        outputs = []
        for run in (blocks[-1], lambda x: both_halves(PADDLE, spec, blocks[-1], x, {})):
            PADDLE.seed(number)
            outputs.append(PADDLE.numpy(run(x)))
        np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=1e-12)
        differ += not np.array_equal(outputs[0], PADDLE.numpy(blocks[-1](x)))
    assert differ


def test_blocks_in_chunks_are_refused():
    model = case_named("passl-dinov2").model().model
    model.blocks = nn.LayerList([nn.LayerList(list(model.blocks))])
    with pytest.raises(UnsupportedModelError, match=r"blocks\[0\] is a .*LayerList, whose forward"):
        tome.apply_patch(model)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "paddleseg.models.backbones.vit_adapter.ViTAdapter",
            "passes a grid of patches to groups of blocks",
        ),
        ("paddlenlp.transformers.blip.modeling.BlipVisionModel", "tomecore has no spec for yet"),
    ],
)
def test_what_is_known_not_to_work_is_named(name, reason):
    """Only the name is needed: the first compiles an operator, the others do not import."""
    module, _, cls = name.rpartition(".")
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].__class__ = type(cls, (nn.Linear,), {"__module__": module})
    with pytest.raises(UnsupportedModelError, match=f"holds a {name}, in which .*{reason}"):
        tome.apply_patch(model)
