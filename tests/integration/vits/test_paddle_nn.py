"""``paddle.nn.TransformerEncoderLayer``: CLIP as PaddleNLP has it, and towers of the user's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import paddle
import pytest
from adapters.cases import Case
from adapters.frameworks import PADDLE
from adapters.laws.exactness import both_halves, twins
from adapters.test_paddle_only import same, static
from paddle import nn

from tomecore.adapters import paddle as tome
from tomecore.adapters.engine.find import find_tower
from tomecore.adapters.engine.spec import attributes
from tomecore.adapters.families.paddle.nn import ENCODER_LAYER
from tomecore.errors import UnsupportedModelError
from vits.cases import case_named
from vits.twins.paddlenlp.transformers.clip.modeling import CLIPModel


@pytest.mark.parametrize("by", ["argument", "config"])
def test_hidden_states_have_all_tokens(by):
    case = case_named("paddlenlp-clip")
    model, images = case.patched(r=8).model, case.tensors()
    pooled = PADDLE.numpy(model(images)[1])
    if by == "config":
        model.config.output_hidden_states = True
        output = model(images)
    else:
        output = model(images, output_hidden_states=True)
    assert [state.shape for state in output[2]] == [[3, 65, 32]] * 5
    np.testing.assert_allclose(PADDLE.numpy(output[1]), pooled, rtol=0, atol=1e-12)
    model.config.output_hidden_states = False
    assert len(model(images)) == 2


def test_clip_in_a_static_graph():
    case = case_named("paddlenlp-clip")
    model, images = case.patched(depth=2, r=8), case.tensors()
    expected = PADDLE.numpy(model(images))
    same(static(model), images, expected)


def clip():
    return PADDLE.prepare(
        CLIPModel(image_size=32, patch_size=4, hidden_size=32, heads=4, depth=4, hidden=48)
    )


def test_of_clip_only_the_vision_tower_is_patched():
    model, ids = clip(), paddle.to_tensor([[3, 1, 4, 1, 5]])
    images = case_named("paddlenlp-clip").tensors(1)
    image, text = model(ids, images)
    tome.apply_patch(model, r=8)
    classes = {type(layer) for layer in model.text_model.transformer.layers}
    assert classes == {nn.TransformerEncoderLayer}
    merged, same_text = model(ids, images)
    assert np.array_equal(same_text.numpy(), text.numpy())
    assert not np.allclose(merged.numpy(), image.numpy())
    assert model.tome.tokens == [57, 49, 41, 33]


@pytest.mark.parametrize(
    "part", ["text_model", "text_model.transformer", "vision_model.transformer"]
)
def test_encoders_that_may_be_of_text_are_refused(part):
    (encoder,) = attributes(clip(), part)
    before = PADDLE.fingerprint(encoder)
    with pytest.raises(UnsupportedModelError, match="holds no vision transformer that tomecore"):
        tome.apply_patch(encoder)
    assert PADDLE.fingerprint(encoder) == before


def test_the_forward_that_paddlenlp_puts_in_place(monkeypatch):
    """Importing PaddleNLP replaces the layer's forward; attention maps are for r = 0 only."""
    original = nn.TransformerEncoderLayer.forward

    def forward(self, src, src_mask=None, cache=None, output_attentions=False):
        y = original(self, src, src_mask, cache)
        return (y, paddle.ones([1])) if output_attentions else y

    case = case_named("paddlenlp-clip")
    expected = PADDLE.forward(case.patched(r=8), case.images())
    monkeypatch.setattr(nn.TransformerEncoderLayer, "forward", forward)
    with pytest.raises(UnsupportedModelError, match=r"was replaced by vits\.test_paddle_nn"):
        case.patched(r=8)
    forward.__module__ = "paddlenlp.transformers.model_outputs"
    model = case.patched(r=8)
    assert np.array_equal(PADDLE.forward(model, case.images()), expected)
    x = case.entering(model, case.images())
    block = case.blocks(model)[0]
    assert block(x, src_mask=None, cache=None, output_attentions=False).shape[1] == 57
    model.r = 0
    y = block(x, output_attentions=True)
    assert isinstance(y, tuple)
    assert case.blocks(model)[1](y[0]).shape == x.shape
    model.r = 8
    for given in ({"output_attentions": True}, {"src_mask": paddle.zeros([65, 65])}):
        with pytest.raises(UnsupportedModelError, match=f"was called with {next(iter(given))}="):
            block(x, **given)


class OwnViT(nn.Layer):
    """A tower of the user's own around Paddle's encoder."""

    def __init__(self, img_size, depth, normalize_before):
        super().__init__()
        self.patches = nn.Conv2D(3, 32, 4, stride=4)
        layer = nn.TransformerEncoderLayer(
            32, 4, 48, dropout=0.0, normalize_before=normalize_before
        )
        self.encoder = nn.TransformerEncoder(layer, depth)

    def forward(self, images):
        return self.encoder(self.patches(images).flatten(2).transpose([0, 2, 1])).mean(axis=1)


def none_in_front(tower):
    return 0


@pytest.fixture(params=[True, False], ids=["pre-norm", "post-norm"])
def own(request):
    """A case of a registered tower, forgotten afterwards."""
    family = "mine"
    towers = {OwnViT: "encoder.layers"}
    tome.register(replace(ENCODER_LAYER, family=family, towers=towers, prefix=none_in_front))
    yield Case(
        family,
        PADDLE,
        lambda img_size, depth: OwnViT(img_size, depth, request.param),
        prefix=0,
        layers="encoder.layers",
    )
    tome.HOST.registered.clear()


def test_a_registered_tower(own):
    """The halves are the layer's, twins merge without loss, recomputation changes no gradient."""
    model = own.model()
    spec, _, blocks = find_tower(tome.HOST, tome.SPECS, model)
    x = PADDLE.tensor(twins(own, 32))
    expected = x
    for block in blocks:
        halves = PADDLE.numpy(both_halves(PADDLE, spec, block, expected, {}))
        expected = block(expected)
        whole = PADDLE.numpy(expected)
        np.testing.assert_allclose(halves, whole, rtol=0, atol=1e-13 * np.abs(whole).max())
    unpatched = PADDLE.forward(model, own.images())
    tome.apply_patch(model, r=0)
    assert np.array_equal(PADDLE.forward(model, own.images()), unpatched)
    model.r = [32]
    merged = x
    for block in blocks:
        merged = block(merged)
    np.testing.assert_allclose(
        PADDLE.numpy(merged), whole, rtol=0, atol=1e-11 * np.abs(whole).max()
    )
    assert model.tome.tokens == [32] * 4


def test_a_registered_tower_in_training_and_in_a_static_graph(own):
    model, images = own.patched(r=8), own.tensors()
    model.train()
    gradients = PADDLE.gradients(model, lambda: (model(images) ** 2).sum())
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    assert len(gradients) == len(list(model.named_parameters()))
    model.eval()
    expected = PADDLE.numpy(model(images))
    same(static(model), images, expected)
