"""Every code block of ``docs/migration-from-plsc.md`` runs, from weights files written before.

PLSC imports on Paddle 3 only once ``paddle.fluid`` is aliased (``benchmarks/plsc_sources.py``). Its ViT is
PaddleClas' text: the twin here is a model of PaddleClas whose layers have PLSC's class names, and PLSC's
``load_pretrained``. The functions that build models build narrow ones here, as deep and with as many tokens
as the real ones.
"""

from __future__ import annotations

import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest
from paddleclas.ppcls.arch.backbone.model_zoo import vision_transformer as clas
from vits.test_paddle_libraries import moved

import tomecore.models.paddle
from paddle_production.models import CLAS, ROOT, near
from tomecore.adapters import paddle as tome
from tomecore.models.paddle import load_weights

PAGE = (ROOT / "docs" / "migration-from-plsc.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NARROW = {"embed_dim": 48, "num_heads": 4}
TOKENS = [197 - 16 * (layer + 1) for layer in range(11)] + [11]


def narrow(cls):
    return lambda **given: cls(**{**given, **NARROW})


def load_pretrained(self, path):
    self.set_dict(paddle.load(path + ".pdparams"))


TWINS = {}


def plsc_vit_base():
    """PaddleClas' layers under PLSC's names."""
    model = clas.VisionTransformer(patch_size=16, qkv_bias=True, epsilon=1e-6, **NARROW)
    for layer in model.sublayers(include_self=True):
        cls = type(layer)
        if cls.__module__ == clas.__name__:
            twin = TWINS.setdefault(cls, moved(cls, "plsc.models.vision_transformer"))
            layer.__class__ = twin
    type(model).load_pretrained = load_pretrained
    return model


@pytest.fixture
def world(tmp_path, monkeypatch):
    """The environment of a block: files, a module ``plsc``, images; and the model whose weights they are."""
    plsc: Any = ModuleType("plsc.models")
    plsc.vision_transformer = SimpleNamespace(ViT_base_patch16_224=plsc_vit_base)
    monkeypatch.setitem(sys.modules, "plsc", ModuleType("plsc"))
    monkeypatch.setitem(sys.modules, "plsc.models", plsc)
    original = CLAS.fw.prepare(plsc_vit_base()).to(dtype="float32")
    for name in ("imagenet2012-ViT-B_16-224", "ViT_base_patch16_224_pretrained"):
        paddle.save(original.state_dict(), str(tmp_path / "models" / f"{name}.pdparams"))
    for module in (clas, tomecore.models.paddle):
        monkeypatch.setattr(module, "VisionTransformer", narrow(module.VisionTransformer))
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    images = generator.standard_normal((2, 3, 224, 224)).astype("float32")
    return original, {
        "images": paddle.to_tensor(images),
        "tome": tome,
        "keys": paddle.to_tensor(generator.standard_normal((2, 65, 16))),
        "tokens": paddle.to_tensor(generator.standard_normal((2, 65, 32))),
    }


def run(block, names):
    exec(compile(block, "migration-from-plsc.md", "exec"), names)
    return names


def block_with(text):
    (found,) = [block for block in BLOCKS if text in block]
    return found


EXAMPLES = ["from plsc.models", "from paddleclas", "import VisionTransformer, load_weights"]


def test_every_block_is_run_below():
    assert len(BLOCKS) == len(EXAMPLES) + 3


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@pytest.mark.parametrize("start", EXAMPLES, ids=["plsc", "paddleclas", "tomecore"])
def test_the_example(world, start):
    """The weights are those of the file, and the tokens fall as r says."""
    original, names = world
    expected = original(names["images"])
    run(block_with(start), names)
    model, logits = names["model"], names["logits"]
    assert type(model).__name__ == "VisionTransformer"
    assert model.tome.tokens == TOKENS
    near(logits, tome.apply_patch(original, r=16)(names["images"]), 1e-5)
    model.r = 0
    near(model(names["images"]), expected, 1e-5)


def test_the_lines_are_those_of_plsc_but_for_one():
    """The seed: what PLSC's README says, its comments apart."""
    lines = [line for line in block_with("from plsc.models").splitlines() if line[:1] not in "#"]
    assert [line.split("  #")[0].replace('"', "'") for line in lines[:6]] == [
        "from plsc.models import vision_transformer",
        "from tomecore.adapters import paddle as tome",
        "model = vision_transformer.ViT_base_patch16_224()",
        "model.load_pretrained('models/imagenet2012-ViT-B_16-224')",
        "tome.apply_patch(model)",
        "model.r = 16",
    ]


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
def test_weights_loaded_after_patching(world):
    original, names = world
    model = tome.apply_patch(plsc_vit_base(), r=16)
    model.load_pretrained("models/imagenet2012-ViT-B_16-224")
    model.eval()
    expected = tome.apply_patch(original, r=16)(names["images"])
    assert np.array_equal(model(names["images"]).numpy(), expected.numpy())


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
def test_proportional_attention_and_removing(world):
    original, names = world
    unpatched = original(names["images"]).numpy()
    names["model"] = tome.apply_patch(original, r=16)
    by_default = original(names["images"]).numpy()
    run(block_with("prop_attn=False"), names)
    assert original.r == 16
    assert np.array_equal(names["proportional"].numpy(), by_default)
    assert np.abs(names["plain"].numpy() - by_default).max() > 1e-3 * np.abs(by_default).max()
    run(block_with("remove_patch"), names)
    assert np.array_equal(original(names["images"]).numpy(), unpatched)


def test_the_functions_below(world):
    _, names = world
    tokens = names["tokens"]
    run(block_with("merge, unmerge = plan"), names)
    assert names["summed"].shape == [2, 49, 32]
    near(names["summed"].sum(axis=1), tokens.sum(axis=1))
    near(names["sizes"].sum(axis=1), [65, 65])
    assert names["everywhere"].shape == [2, 65, 32]


def test_a_file_with_a_hidden_layer_before_the_head_is_refused(world):
    original, _ = world
    state = original.state_dict()
    state["head0.weight"], state["head0.bias"] = paddle.ones([48, 48]), paddle.ones([48])
    paddle.save(state, "models/hidden.pdparams")
    model = tomecore.models.paddle.VisionTransformer(qkv_bias=True)
    before = model.head.weight.numpy().copy()
    with pytest.raises(ValueError, match=r"head0\.bias"):
        load_weights(model, "models/hidden.pdparams")
    assert np.array_equal(model.head.weight.numpy(), before)
