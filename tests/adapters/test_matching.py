"""``apply_patch(matching=)``: every matching in every framework, and what breaks its contract."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings

import numpy as np
import paddle
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import tomecore as tc
from adapters.cases import OWN
from tomecore import matching
from tomecore.errors import ArgumentTypeError, ArgumentValueError, UnsupportedModelError


@matching.needs("class_attention")
def least_attended(keys, r, context):
    """Merge the r least attended tokens into the first of the others: the example of the how-to."""
    backend, xp, first = context.backend, context.backend.xp, context.protected
    attention = context.class_attention()[:, first:]
    order = xp.argsort(attention, axis=1, descending=True, stable=True) + first
    stay, gone = order[:, : order.shape[1] - r], order[:, order.shape[1] - r :]
    front = backend.batched_arange(order, 0, first, 1)
    kept = xp.concat([front, xp.sort(stay, axis=1)], axis=1)
    return tc.MergePlan(kept, gone, xp.zeros_like(gone) + first, backend=backend)


def dropping(keys, r, context, keep_size=False):
    """ToMe's matching; the sources are dropped."""
    plan, xp = matching.tome(keys, r, context), context.backend.xp
    zeros = xp.astype(xp.zeros_like(plan.merged), xp.float32)
    flags = xp.concat([xp.ones_like(plan.kept), xp.zeros_like(plan.merged)], axis=1)
    tokens = xp.concat([plan.kept, plan.merged], axis=1)
    weight = xp.astype(context.backend.permute(tokens, flags), xp.float32)
    return plan.weighted(mean_weight=weight, size_weight=None if keep_size else zeros)


def as_tome(keys, r, context):
    return matching.tome(keys, r, context)


def fewer(keys, r, context):
    return matching.tome(keys, r - 1, context)


def unprotected(keys, r, context):
    return tc.random_bipartite_soft_matching(keys, r, 1)


def into_prefix(keys, r, context):
    plan = matching.tome(keys, r, context)
    return tc.MergePlan(plan.kept, plan.merged, 0 * plan.into)


def out_of_range(keys, r, context):
    plan = matching.tome(keys, r, context)
    return tc.MergePlan(plan.kept, plan.merged, 0 * plan.into + plan.num_slots)


def token_twice(keys, r, context):
    plan = matching.tome(keys, r, context)
    return tc.MergePlan(plan.kept, plan.kept[:, -r:], plan.into)


def one_sample(keys, r, context):
    plan = matching.tome(keys, r, context)
    return tc.MergePlan(plan.kept[:1], plan.merged[:1], plan.into[:1])


def a_pair(keys, r, context):
    return tuple(matching.tome(keys, r, context))


def as_numpy(keys, r, context):
    return tc.bipartite_soft_matching(np.ones(tuple(keys.shape)), r, protected=context.protected)


def negative_weight(keys, r, context):
    plan, xp = matching.tome(keys, r, context), context.backend.xp
    return plan.weighted(size_weight=xp.astype(0 * plan.merged - 1, xp.float32))


BROKEN = {
    fewer: "r=4, so its plan must keep .* and merge 4; it keeps .* and merges 3",
    unprotected: r"must keep the 1 prefix tokens first and in order: `kept` must start with \[0\]",
    into_prefix: "must merge into the slots 1 to .*, which hold no prefix token; .* goes into slot 0",
    out_of_range: "must merge into the slots 1 to ",
    token_twice: r"must name every token once, .* are missing, and .* occur more than once",
    one_sample: "got 3 samples, and its plan has 1",
    a_pair: r"must return a tomecore\.MergePlan; got builtins\.tuple",
    as_numpy: "must return a plan of .* arrays, as its keys are; got numpy",
    negative_weight: "must return a `size_weight` that is finite and not negative",
}


def outputs(case, model):
    return case.fw.forward(model, case.images())


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad(), paddle.no_grad():
        yield


def test_a_function_that_matches_as_tome_does(plain):
    expected = outputs(plain, plain.patched(r=4))
    model = plain.patched(r=4, matching=as_tome)
    assert np.abs(outputs(plain, model) - expected).max() < 1e-12
    assert np.array_equal(outputs(plain, plain.patched(r=4, matching="tome")), expected)


def test_the_contract_is_checked_by_name(plain):
    for broken, text in BROKEN.items():
        model = plain.patched(r=4, matching=broken)
        with pytest.raises((ArgumentValueError, ArgumentTypeError), match=text) as error:
            outputs(plain, model)
        assert f"matching={broken.__name__}" in str(error.value)
        plain.fw.tome.apply_patch(model, matching="tome")
        outputs(plain, model)


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ("tom", ArgumentValueError, "Did you mean 'tome'"),
        ("", ArgumentValueError, "`matching` must be one of 'tome'"),
        (3, ArgumentTypeError, r"`matching` must be a name, or a function .*; got 3 \(int\)"),
    ],
)
def test_what_is_no_matching_is_refused_before_any_change(plain, wrong, error, text):
    model = plain.model()
    before = plain.fw.fingerprint(model)
    with pytest.raises(error, match=text):
        plain.fw.tome.apply_patch(model, r=4, matching=wrong)
    assert plain.fw.fingerprint(model) == before


@pytest.mark.parametrize("pooled", [c for c in OWN if not c.prefix], ids=lambda case: case.name)
def test_what_a_matching_needs_is_checked_when_the_model_is_patched(pooled):
    model, fw = pooled.model(), pooled.fw
    before = fw.fingerprint(model)
    for chosen in (least_attended, functools.partial(least_attended)):
        with pytest.raises(UnsupportedModelError, match="it has no class token"):
            fw.tome.apply_patch(model, r=4, matching=chosen)
    assert fw.fingerprint(model) == before


@pytest.mark.parametrize("pooled", [c for c in OWN if not c.prefix], ids=lambda case: case.name)
def test_what_a_matching_reads_undeclared_is_refused_when_it_is_read(pooled):
    def undeclared(keys, r, context):
        context.class_attention()
        return matching.tome(keys, r, context)

    model = pooled.patched(r=4, matching=undeclared)
    with pytest.raises(UnsupportedModelError, match=r"no class token\. Declare @matching\.needs"):
        outputs(pooled, model)


def test_it_is_kept_when_the_model_is_patched_again(plain):
    model = plain.patched(r=4, matching=least_attended)
    expected = outputs(plain, model)
    assert np.abs(expected - outputs(plain, plain.patched(r=4))).max() > 1e-6
    plain.fw.tome.apply_patch(model)
    assert model.tome.matching is least_attended
    assert "matching=least_attended" in repr(model.tome)
    assert np.array_equal(outputs(plain, model), expected)
    plain.fw.tome.apply_patch(model, matching="tome")
    assert model.tome.matching == "tome"
    assert np.array_equal(outputs(plain, model), outputs(plain, plain.patched(r=4)))
    plain.fw.tome.remove_patch(model)
    assert plain.fw.tome.apply_patch(model).tome.matching == "tome"


@pytest.mark.parametrize("chosen", [least_attended, functools.partial(dropping, keep_size=True)])
def test_copies_and_pickles_keep_it(plain, chosen):
    model = plain.patched(r=4, matching=chosen)
    expected = outputs(plain, model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(outputs(plain, other), expected)


def test_a_lambda_is_copied_but_not_pickled(plain):
    model = plain.patched(r=4, matching=lambda keys, r, context: matching.tome(keys, r, context))
    outputs(plain, copy.deepcopy(model))
    with pytest.raises(
        ArgumentTypeError, match=r"matching=.*<lambda> cannot be pickled .* top level"
    ):
        pickle.dumps(model)


(TORCH_PLAIN,) = (case for case in OWN if case.golden and case.fw.name == "torch")


@pytest.mark.filterwarnings(
    "ignore:There is a performance drop"
)  # vmap without a rule for attention
@pytest.mark.parametrize("chosen", ["drop_similar", "evit", "random"])
def test_transforms_run_every_matching(chosen):
    """Values that cannot be read are not checked."""
    model = TORCH_PLAIN.patched(r=4, matching=chosen)
    images = torch.as_tensor(TORCH_PLAIN.images())
    expected = model(images)
    each = torch.func.vmap(lambda image: model(image[None])[0])(images)
    assert (each - expected).abs().max() < 1e-12
    with torch.enable_grad():
        gradient = torch.func.grad(lambda x: model(x).sum())(images)
    assert gradient.isfinite().all()
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        assert model(fake.from_tensor(images)).shape == expected.shape


def test_a_trace_of_random_takes_token_counts_as_tensors():
    model = TORCH_PLAIN.patched(r=4, matching="random")
    images = torch.as_tensor(TORCH_PLAIN.images())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, images, check_trace=False)
    assert torch.equal(traced(images[:2]), model(images[:2]))


def test_weights_may_have_a_dtype_that_numpy_lacks():
    def halved(keys, r, context):
        plan = matching.tome(keys, r, context)
        return plan.weighted(size_weight=torch.full(plan.merged.shape, 0.5, dtype=torch.bfloat16))

    model = TORCH_PLAIN.patched(r=4, matching=halved)
    outputs(TORCH_PLAIN, model)
    assert model.tome.sizes.max() > 1


@pytest.mark.parametrize("keep_size", [False, True])
def test_counts_are_not_sizes(plain, keep_size):
    chosen = functools.partial(dropping, keep_size=keep_size)
    model = plain.patched(r=4, matching=chosen, trace_source=True)
    outputs(plain, model)
    sizes, counts, source = (
        plain.fw.numpy(a) for a in (model.tome.sizes, model.tome.counts, model.tome.source)
    )
    total = plain.num_tokens()
    assert counts.dtype.kind == "i"
    assert (counts.sum(axis=1) == total).all()
    for sample in range(len(source)):
        assert np.array_equal(
            np.bincount(source[sample], minlength=counts.shape[1]), counts[sample]
        )
    assert np.array_equal(sizes, counts) if keep_size else (sizes == 1).all()


def test_counts_without_a_merge(plain):
    model = plain.patched()
    outputs(plain, model)
    assert (plain.fw.numpy(model.tome.counts) == 1).all()


def test_the_context_tells_the_layer_and_what_came_before(plain):
    seen = []

    def look(keys, r, context):
        number = plain.fw.numpy
        seen.append((context.layer, context.num_layers, context.protected, context.valid))
        sizes, counts = number(context.sizes), number(context.counts)
        assert sizes.shape == counts.shape == tuple(keys.shape[:2])
        assert np.array_equal(sizes, counts)
        assert (counts.sum(axis=1) == plain.num_tokens()).all()
        attention, values = number(context.class_attention()), number(context.values())
        np.testing.assert_allclose(attention.sum(axis=1), 1, rtol=1e-6)
        assert values.shape[0] == keys.shape[0]
        assert values.shape[2] == keys.shape[1]
        assert values.shape[1] * values.shape[3] == context.x.shape[2]
        return matching.tome(keys, r, context)

    outputs(plain, plain.patched(r=4, matching=look))
    assert seen == [(layer, 4, plain.prefix, None) for layer in range(4)]


def test_the_mean_of_a_constant_table_is_constant_whatever_sizes_are(plain):
    """Rotary tables and position biases divide by counts: with weighted sizes a mean is a mean."""
    from tomecore.adapters.engine.positions import merge_rotary_table

    states = []

    def look(keys, r, context):
        states.append(context._state)
        return dropping(keys, r, context)

    model = plain.patched(r=4, matching=look)
    outputs(plain, model)
    table = plain.fw.tensor(np.ones((plain.num_tokens() - 1, 4)))
    for state in states[1:]:
        merged = plain.fw.numpy(merge_rotary_table(plain.fw.tome.HOST, table, state))
        np.testing.assert_allclose(merged, 1, rtol=1e-6)


@pytest.mark.parametrize("name", matching.names())
def test_every_matching_keeps_the_laws(plain, name):
    """Each more matching adds two of these: one for each framework."""
    fw = plain.fw
    unpatched = outputs(plain, plain.model())
    model = plain.patched(r=4, matching=name, trace_source=True)
    found = outputs(plain, model)
    total = plain.num_tokens()
    assert np.isfinite(found).all()
    assert model.tome.tokens == tc.tokens_per_layer(4, 4, total)
    counts, source = fw.numpy(model.tome.counts), fw.numpy(model.tome.source)
    assert (counts.sum(axis=1) == total).all()
    assert source.shape == (3, total)
    assert source.max() < counts.shape[1]
    model.r = 0
    assert np.array_equal(outputs(plain, model), unpatched)
    model.r = [0, 5, 0, 7]
    varied = outputs(plain, model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(outputs(plain, other), varied)
    with model.tome.all_tokens():
        np.testing.assert_allclose(outputs(plain, model), varied, rtol=0, atol=1e-12)
    fw.tome.remove_patch(model)
    assert np.array_equal(outputs(plain, model), unpatched)


@pytest.mark.parametrize("name", matching.names())
def test_every_matching_trains(plain, name):
    """Gradients are finite, and the same if blocks are recomputed. Each more matching adds two."""
    fw = plain.fw
    model = plain.patched(r=4, matching=name)
    with torch.enable_grad(), paddle.enable_grad():

        def loss(recomputed):
            y = plain.entering(model, plain.images())
            for block in model.blocks:
                y = fw.checkpoint(block, y, reentrant=False) if recomputed else block(y)
            return (y**2).mean()

        expected = fw.gradients(model, functools.partial(loss, False))
        found = fw.gradients(model, functools.partial(loss, True))
    assert expected
    for key, gradient in expected.items():
        assert np.isfinite(gradient).all(), key
        np.testing.assert_allclose(found[key], gradient, rtol=1e-9, atol=1e-12)


#: matchings that choose by similarity; the others merge or drop tokens that have no twin
BY_SIMILARITY = ("tome", "bidirectional", "tome_cis", "pitome", "tofu", "kth", "drop_similar")


@pytest.mark.parametrize("name", BY_SIMILARITY)
def test_doubled_patches_merged_by_half_lose_nothing(plain, name):
    """Law 14: with each patch twice, merging every patch with its twin gives the output of all tokens."""
    fw, model = plain.fw, plain.model()
    x = fw.numpy(plain.entering(model, plain.images()))
    doubled = np.concatenate([x[:, :1], np.repeat(x[:, 1:], 2, axis=1)], axis=1)

    def output():
        y = fw.tensor(doubled)
        for block in model.blocks:
            y = block(y)
        return fw.numpy(y)

    expected = output()
    fw.tome.apply_patch(model, r=[x.shape[1] - 1, 0, 0, 0], matching=name)
    found = output()
    assert model.tome.tokens == [x.shape[1]] * 4
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
