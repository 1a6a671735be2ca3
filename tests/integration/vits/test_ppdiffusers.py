"""ppdiffusers' CLIP: layers that return tuples, what may be in them, and what the tower does with them."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from adapters.frameworks import PADDLE
from adapters.test_gradients import assert_same, in_training
from adapters.test_paddle_only import same, static

from tomecore.adapters import paddle as tome
from tomecore.errors import UnsupportedModelError
from vits.cases import case_named
from vits.twins.ppdiffusers.transformers.clip.modeling import CLIPEncoderLayer, CLIPModel, config


@pytest.fixture
def case():
    return case_named("ppdiffusers-clip")


def test_layers_return_tuples_also_when_they_merge(case):
    for r in (0, 8):
        model = case.patched(r=r)
        x = case.entering(model, case.images())
        for number, block in enumerate(case.blocks(model)):
            y = block(x, None, None, output_attentions=False)
            assert isinstance(y, tuple)
            assert len(y) == 1
            (x,) = y
            assert x.shape == [3, 65 if number == 3 else 65 - r * (number + 1), 32]


@pytest.mark.parametrize("by", ["argument", "config"])
def test_hidden_states_have_all_tokens(case, by):
    model, images = case.patched(r=8).model, case.tensors()
    pooled = PADDLE.numpy(model(images)[1])
    if by == "config":
        model.config.output_hidden_states = True
        output = model(images)
    else:
        output = model(images, output_hidden_states=True)
    assert [state.shape for state in output[2]] == [[3, 65, 32]] * 5
    np.testing.assert_allclose(PADDLE.numpy(output[1]), pooled, rtol=0, atol=1e-12)


def test_attention_maps_are_for_r_zero(case):
    model, images = case.patched(r=0).model, case.tensors()
    expected = model(images)[1]
    output = model(images, output_attentions=True)
    assert [weights.shape for weights in output[2]] == [[3, 4, 65, 65]] * 4
    assert np.array_equal(output[1].numpy(), expected.numpy())
    merging = case.patched(r=8)
    block = merging.model.encoder.layers[0]
    x, zeros = case.entering(case.model(), case.images()), paddle.zeros([3, 1, 65, 65])
    for args, text in (
        ((None, None, True), "output_attentions="),
        ((zeros, None), "attention_mask="),
        ((None, zeros), "causal_attention_mask="),
    ):
        with pytest.raises(UnsupportedModelError, match=f"was called with {text}, which describes"):
            block(x, *args)


@pytest.mark.parametrize("r", [0, 8])
def test_checkpointed_as_the_library_does(case, r):
    """Layer by layer, all arguments by position, and the tuple comes out of the recomputed region."""
    model, images = in_training(case, r=r), case.tensors()

    def loss():
        return (model(images) ** 2).sum()

    expected = case.fw.gradients(model, loss)
    model.model.encoder.gradient_checkpointing = True
    assert_same(case.fw.gradients(model, loss), expected)
    assert model.tome.tokens == [65 - r * (layer + 1) for layer in range(4)]


@pytest.mark.parametrize("full_graph", [True, False], ids=["ast", "sot"])
def test_in_a_static_graph(case, full_graph):
    model, images = case.patched(depth=2, r=8), case.tensors()
    expected = PADDLE.numpy(model(images))
    same(static(model, full_graph), images, expected)


def test_only_the_vision_tower_is_patched():
    sizes = {"image_size": 32, "patch_size": 4, "hidden_size": 32, "intermediate_size": 48}
    model = CLIPModel(config(**sizes, num_hidden_layers=4, num_attention_heads=4))
    model, ids = PADDLE.prepare(model), paddle.to_tensor([[3, 1, 4, 1, 5]])
    images = case_named("ppdiffusers-clip").tensors(1)
    image, text = model(ids, images)
    tome.apply_patch(model, r=8)
    assert {type(layer) for layer in model.text_model.encoder.layers} == {CLIPEncoderLayer}
    merged, same_text = model(ids, images)
    assert np.array_equal(same_text.numpy(), text.numpy())
    assert not np.allclose(merged.numpy(), image.numpy())
    assert model.tome.tokens == [57, 49, 41, 33]
    before = PADDLE.fingerprint(model.text_model)
    with pytest.raises(UnsupportedModelError, match="holds no vision transformer that tomecore"):
        tome.apply_patch(model.text_model)
    assert PADDLE.fingerprint(model.text_model) == before
