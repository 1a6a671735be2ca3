"""Twenty ways in which PLSC's port of ToMe, the one Paddle had, goes wrong: none may come back.

Each behaviour has a test, here or where it belongs:

| the port | the test that fails on it |
|---|---|
| 1 its README example crashes, at r = 0 too | test_the_readme_example |
| 2 a backward pass is refused | test_it_trains, test_the_strided_form_shows_what_these_tests_look_for |
| 3 arguments are overwritten | core/test_arguments.py::test_nothing_is_mutated, test_what_enters_a_block_is_left_alone |
| 4 unmerging has no gradient | core/test_merging.py::test_gradients |
| 5 only "sum" works, kept by an assert | core/test_merging.py::test_merge, test_no_check_is_an_assert |
| 6 no source map, no unmerging, no other matching, no visualization | adapters/test_outputs.py::test_unmerge_is_a_gather_by_the_source, core/test_matching.py::test_kth, core/test_matching.py::test_random, tools/test_visualization.py::test_patches_of_a_group_need_not_touch |
| 7 the distillation token is dropped | test_both_tokens_of_a_distilled_model_are_kept |
| 8 its own distilled ViT does not build | integration/test_models.py::test_paddle_against_paddleclas |
| 9 what it cannot patch is left half patched | integration/vits/test_paddle_libraries.py::test_other_models_are_refused_and_untouched, test_a_model_without_a_class_token |
| 10 unknown blocks are silently not merged | adapters/test_refusals.py::test_no_vision_transformer_at_all, integration/vits/test_paddle_libraries.py::test_a_path_that_only_looks_alike |
| 11 a subclass loses its own forward | adapters/laws/lifecycle.py::test_a_changed_block_is_refused_and_untouched |
| 12 to_static is impossible | adapters/test_paddle_only.py::test_a_static_graph_computes_the_same |
| 13 so is a static graph of its merge | backends/test_paddle_namespace.py::test_static_graph, core/test_tracing.py::test_any_batch_size |
| 14 half precision counts and compares in half precision | test_sizes_are_counted_in_float32, core/test_matching.py::test_half_precision_keys_are_compared_in_float32 |
| 15 a key of zero becomes NaN | core/test_matching.py::test_keys_of_norm_zero_are_similar_to_none, test_keys_of_zero_in_a_model |
| 16 equal similarities fall anywhere | core/test_matching.py::test_many_ties_are_sorted_stably |
| 17 proportional attention is off | adapters/laws/exactness.py::test_proportional_attention_is_the_default_and_changes_the_output |
| 18 a second patch nests, none comes off, none is pickled | adapters/laws/lifecycle.py::test_applying_twice_stacks_nothing, adapters/laws/lifecycle.py::test_remove_leaves_no_trace, adapters/laws/lifecycle.py::test_copies_are_independent_and_still_patched |
| 19 one layer divides by zero, numbers too many are ignored | core/test_schedule.py::test_line_of_one_layer, test_one_layer_and_too_many_numbers |
| 20 recomputation and graphs break its state | adapters/laws/gradients.py::test_recomputation_changes_no_gradient, adapters/test_paddle_only.py::test_a_static_graph_computes_the_same |
"""  # noqa: E501

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddleclas.ppcls.arch.backbone.model_zoo import vision_transformer as clas
from scripts import load_script

import tomecore as tc
from paddle_production.models import CLAS, DISTILLED, OWN_PLAIN, PPIM, ROOT
from tomecore.adapters import paddle as tome
from tomecore.errors import ArgumentValueError

PLAIN = pytest.mark.parametrize("case", [CLAS, PPIM, OWN_PLAIN], ids=lambda case: case.name)


def test_every_test_named_above_exists():
    rows = [row.split("|")[1:3] for row in __doc__.splitlines() if row.startswith("| ")][1:]
    assert [int(row[0].split()[0]) for row in rows] == list(range(1, 21))
    for _, named in rows:
        for name in named.strip().split(", "):
            file, _, function = name.rpartition("::")
            text = (ROOT / "tests" / file if file else Path(__file__)).read_text()
            assert re.search(rf"^ *def {function}\(", text, re.MULTILINE), name


@PLAIN
def test_the_readme_example(case):
    """AttributeError for every r: it reads ``global_pool``, which a plain ViT does not have."""
    model, images = case.model(), case.tensors()
    if case is not OWN_PLAIN:
        assert not hasattr(model, "global_pool")
    expected = case.fw.numpy(model(images))
    model = tome.apply_patch(model)
    model.r = 0
    assert np.array_equal(case.fw.numpy(model(images)), expected)
    model.r = 8
    output = case.fw.numpy(model(images))
    assert output.shape == expected.shape
    assert model.tome.tokens == [57, 49, 41, 33]
    assert 0 < np.abs(output - expected).max() < 10 * np.abs(expected).max()


@PLAIN
@pytest.mark.parametrize("prop_attn", [True, False], ids=["proportional", "plain"])
def test_it_trains(case, prop_attn):
    """PermissionDenied in backward: ``size`` was saved for it and then merged in place."""
    model, images = case.patched(r=8, prop_attn=prop_attn), case.tensors()
    model.train()
    sgd, losses = case.fw.sgd(model, 1e-3), []
    for _ in range(4):
        loss = (model(images) ** 2).mean()
        loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        assert all(g is not None and bool(paddle.isfinite(g).all()) for g in grads.values())
        sgd.step()
        sgd.clear_grad()
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_the_strided_form_shows_what_these_tests_look_for():
    """The port's way of merging, written for the benchmark, has the faults and the right values."""
    script = load_script("benchmarks/paddle_merge.py")
    ((key, x, size),) = script.layers(2, 64, [17])
    (merged, sizes), (ours, our_sizes) = (
        form(key, x, size.clone(), 4) for form in (script.strided, script.flat)
    )
    np.testing.assert_allclose(ours.numpy(), merged.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(our_sizes.numpy(), sizes.numpy())
    assert np.array_equal(size.numpy(), np.ones((2, 17, 1)))  # flat left it unchanged
    written = size.clone()
    script.strided(key, x, written, 4)
    assert written.numpy().max() > 1
    for form, trains in ((script.flat, True), (script.strided, False)):
        leaf = x.clone().detach()
        leaf.stop_gradient = False
        out, _ = form(key, leaf * 1.0, size.clone(), 4)
        if trains:
            out.sum().backward()
            assert bool(paddle.isfinite(leaf.grad).all())
        else:
            with pytest.raises(RuntimeError, match="modified by an inplace operat"):
                out.sum().backward()


@PLAIN
def test_what_enters_a_block_is_left_alone(case):
    """``dst`` is a view in Paddle 3, and adding to it in place wrote into the caller's tokens."""
    model, images = case.patched(r=8), case.tensors()
    entered = []
    for block in model.blocks:
        case.fw.pre_hook(block, lambda _, args: entered.append((args[0], args[0].clone())))
    with paddle.no_grad():
        model(images)
    assert len(entered) == 4
    for tensor, copy in entered:
        assert np.array_equal(tensor.numpy(), copy.numpy())
    sizes = model.tome.sizes.clone()
    with paddle.no_grad():
        model(images)
    assert np.array_equal(model.tome.sizes.numpy(), sizes.numpy())


def test_no_check_is_an_assert():
    """``python -O`` takes asserts away; then "mean" and "max" silently summed."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "tomecore").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert found == []


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
def test_both_tokens_of_a_distilled_model_are_kept():
    """The overridden ``forward_features`` knew the class token only: 65 tokens met 66 positions."""
    model, images = DISTILLED.model(), DISTILLED.tensors()
    expected, features = DISTILLED.fw.numpy(model(images)), type(model).forward_features
    tome.apply_patch(model, trace_source=True)
    assert inspect.unwrap(type(model).forward_features) is features
    assert np.array_equal(DISTILLED.fw.numpy(model(images)), expected)
    model.r = 20
    model(images)
    assert model.tome.tokens == [46, 26, 14, 8]
    sizes, source = model.tome.sizes.numpy(), model.tome.source.numpy()
    assert (sizes[:, :2] == 1).all()
    assert (source[:, :2] == [0, 1]).all()
    assert (source[:, 2:] >= 2).all()


class Faceless(clas.VisionTransformer):
    """As PLSC's FaceViT: no class token, and not even an attribute for one."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        del self.cls_token
        self.pos_embed = self.create_parameter([1, 64, 32])

    def forward_features(self, x):
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, x):
        return self.head(self.forward_features(x).mean(axis=1))


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
def test_a_model_without_a_class_token():
    """AttributeError, with the class of the model swapped already."""
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "num_heads": 4, "depth": 3}
    model = CLAS.fw.prepare(Faceless(class_num=7, **sizes))
    images = CLAS.tensors()
    before, expected = CLAS.fw.fingerprint(model), model(images).numpy()
    tome.apply_patch(model)
    assert np.array_equal(model(images).numpy(), expected)
    model.r = 40
    assert model(images).shape == [3, 7]
    assert model.tome.tokens == [32, 16, 8]  # no token is protected
    tome.remove_patch(model)
    assert CLAS.fw.fingerprint(model) == before


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sizes_are_counted_in_float32(dtype):
    """In bfloat16, 256 + 1 is 256: the port merged sizes in the dtype of the activations."""
    keys = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, 9, 4)).astype("float32"))
    plan = tc.bipartite_soft_matching(keys, 4)
    sizes = tc.merge_weighted(plan, keys, paddle.full([2, 9], 255.0).astype(dtype))[1]
    assert sizes.dtype == paddle.float32
    expected = np.asarray(paddle.full([2, 9], 255.0).astype(dtype).astype("float32")).sum(axis=1)
    assert np.array_equal(sizes.numpy().sum(axis=1), expected)
    assert sizes.numpy().max() >= 510


@PLAIN
def test_keys_of_zero_in_a_model(case):
    """0 / 0 is NaN, and Paddle's max and argmax disagree about NaN: merged tokens were wrong."""
    model, images = case.patched(r=8), case.tensors()
    width = 32
    for block in model.blocks:
        weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
        for parameter in (weight, bias):
            values = parameter.numpy().copy()
            values[..., width : 2 * width] = 0
            case.fw.assign(parameter, values)
    output = model(images).numpy()
    assert np.isfinite(output).all()
    assert (model.tome.sizes.numpy().sum(axis=1) == 65).all()
    assert model.tome.sizes.numpy()[:, 0].tolist() == [1, 1, 1]


def test_one_layer_and_too_many_numbers():
    """(r, inflect) divided by the number of layers less one; what a list had too many was ignored."""
    model, images = CLAS.patched(depth=1, r=(8, -1)), CLAS.tensors()
    model(images)
    assert model.tome.tokens == [65 - tc.parse_r(1, (8, -1))[0]]
    with pytest.raises(ArgumentValueError, match=r"`r` has 2 numbers.*1 layer"):
        model.r = [8, 8]
    assert model.r == (8, -1)
