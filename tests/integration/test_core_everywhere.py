"""The core on JAX, which has a backend of a few lines, and on array-api-strict, which has none.

array-api-strict refuses everything the standard does not promise, so it proves that a library works
without any code for it.
"""

from __future__ import annotations

import functools
import subprocess
import sys

import array_api_strict
import jax
import numpy as np
import pytest
import reference
import torch
from libraries import LIBRARIES, Library

import tomecore as tc
from tomecore import backends
from tomecore.backends import Backend, backend_of, check
from tomecore.errors import ArgumentTypeError, ArgumentValueError, UnsupportedLibraryError

jax.config.update("jax_enable_x64", True)

#: Compiling is what these tests wait for, and each program runs once: three times faster without.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_cpu_use_fusion_emitters": False,
}
try:
    jax.jit(lambda x: x + 1, compiler_options=QUICK)(1)
except jax.errors.JaxRuntimeError:  # an XLA without one of these options
    QUICK = {}
jit = functools.partial(jax.jit, compiler_options=QUICK)

EVERYWHERE = {
    "jax": Library("jax", jax.numpy.asarray, np.asarray),
    "array_api_strict": Library("array_api_strict", array_api_strict.asarray, np.asarray),
}


@pytest.fixture(params=EVERYWHERE.values(), ids=repr)
def library(request):
    return request.param


def compiled(function):
    """``jax.jit`` for JAX's arrays; eagerly JAX would compile each of a hundred operations separately."""
    jitted = jit(function)

    def run(*args, **kwargs):
        arrays = [*args, *kwargs.values()]
        is_jax = any(isinstance(array, jax.Array) for array in arrays)
        return (jitted if is_jax else function)(*args, **kwargs)

    return run


def test_float64(golden_case, library):
    golden_case.check(library, "float64", 1e-11, compiled)


def test_float32(golden_case, library):
    golden_case.check(library, "float32", 1e-5, compiled)


def test_names(library):
    assert backend_of(library.to_array(np.ones(2))).name == library.name


def test_check(library):
    check(library.to_array(np.ones(2)))


def test_check_of_the_defaults():
    """JAX follows the standard; its own backend is for speed and precision."""
    check(Backend("defaults", jax.numpy))


class OldStandard:
    """Return array-api-strict without the late additions to the standard."""

    __name__ = "old"

    def __getattr__(self, name):
        if name == "take_along_axis":
            raise AttributeError(name)
        return getattr(array_api_strict, name)


def test_check_of_an_incomplete_library():
    with pytest.raises(UnsupportedLibraryError, match="`take_along_axis` is missing") as raised:
        check(OldStandard())
    assert raised.value.faults == ["`take_along_axis` is missing"]


@pytest.mark.parametrize("r", [0, 3, 100])
@pytest.mark.parametrize(("tokens", "protected"), [(1, 0), (2, 1), (9, 0), (14, 2), (14, 5)])
def test_bipartite(library, rng, tokens, protected, r):
    keys = rng.normal(size=(2, tokens, 4))

    @compiled
    def slots(keys):
        return tc.bipartite_soft_matching(keys, r, protected=protected).slots

    np.testing.assert_array_equal(
        library.to_numpy(slots(library.to_array(keys))),
        [reference.bipartite(one, r, protected).slots() for one in keys],
    )


@pytest.mark.parametrize("protected", [0, 3])
def test_kth(library, rng, protected):
    keys = rng.normal(size=(2, 14, 4))

    @compiled
    def slots(keys):
        return tc.kth_bipartite_soft_matching(keys, 4, protected=protected).slots

    np.testing.assert_array_equal(
        library.to_numpy(slots(library.to_array(keys))),
        [reference.kth(one, 4, protected).slots() for one in keys],
    )


@pytest.mark.parametrize("protected", [0, 3])
def test_random(library, rng, protected):
    keys = rng.normal(size=(2, 14, 4))

    @compiled
    def slots(keys):
        return tc.random_bipartite_soft_matching(keys, 5, seed=3, protected=protected).slots

    permutation = np.random.default_rng(3).permutation(14 - protected).tolist()
    np.testing.assert_array_equal(
        library.to_numpy(slots(library.to_array(keys))),
        [reference.random(one, 5, permutation, protected).slots() for one in keys],
    )


SOURCES, DESTINATIONS = [11, 0, 3, 4, 8, 1, 13], [7, 2, 5]


@pytest.mark.parametrize(("r", "chunk"), [(None, 2), (None, None), (3, 3), (0, None)])
def test_partition(library, rng, r, chunk):
    """Token numbers of NumPy are constants; those of the library are traced."""
    keys = rng.normal(size=(2, 14, 4))
    numbers = np.array(SOURCES), np.array(DESTINATIONS)
    expected = [reference.partition(one, SOURCES, DESTINATIONS, r).slots() for one in keys]

    @compiled
    def slots(keys, sources, destinations):
        return tc.partition_matching(keys, sources, destinations, r, chunk=chunk).slots

    given = library.to_array(keys), *map(library.to_array, numbers)
    np.testing.assert_array_equal(library.to_numpy(slots(*given)), expected)
    fixed = compiled(lambda keys: tc.partition_matching(keys, *numbers, r, chunk=chunk).slots)
    np.testing.assert_array_equal(library.to_numpy(fixed(given[0])), expected)


def test_token_numbers_are_checked(library, rng):
    """Those of NumPy everywhere, and those of JAX on a CPU; array-api-strict has no way to read them."""
    keys = library.to_array(rng.normal(size=(2, 14, 4)))
    wrong = np.array([0, 14]), np.array([3])
    with pytest.raises(ArgumentValueError, match="`sources` must hold token numbers from 0 to 13"):
        tc.partition_matching(keys, *wrong)
    read = backend_of(keys).host_values(library.to_array(wrong[0]))
    assert (read is not None) == (library.name == "jax")
    if library.name == "jax":
        with pytest.raises(ArgumentValueError, match="got 14"):
            tc.partition_matching(keys, *map(library.to_array, wrong))


def test_partition_under_vmap(rng):
    """A batch of batches, each with token numbers of its own."""
    keys = rng.normal(size=(3, 2, 14, 4))
    sources = np.array([rng.permutation(10)[:6] for _ in keys])

    def slots(keys, sources):
        return tc.partition_matching(keys, sources, np.array([12, 10, 13]), 4, chunk=4).slots

    found = jit(jax.vmap(slots))(jax.numpy.asarray(keys), jax.numpy.asarray(sources))
    for one, batch, numbers in zip(found, keys, sources, strict=True):
        np.testing.assert_array_equal(one, slots(batch, numbers))


def test_without_a_compiler(library):
    """Eagerly, with ties, which go to the first token."""
    plan = tc.bipartite_soft_matching(library.to_array(np.ones((1, 12, 4))), 4)
    assert library.to_numpy(plan.merged).tolist() == [[0, 2, 4, 6]]
    assert library.to_numpy(plan.into).tolist() == [[2, 2, 2, 2]]


def test_following_tokens(library, rng):
    @compiled
    def layers(x):
        source, size = None, None
        for r in (6, 4):
            plan = tc.bipartite_soft_matching(x, r, protected=1)
            x, size = tc.merge_weighted(plan, x, size)
            source = tc.compose(source, plan)
        return source, size

    source, size = map(library.to_numpy, layers(library.to_array(rng.normal(size=(2, 20, 3)))))
    counts = [np.bincount(one, minlength=10) for one in source]
    np.testing.assert_array_equal(size, counts)


def test_mixed_with_numpy(library):
    with pytest.raises(ArgumentTypeError, match=f"one library; got numpy, {library.name}"):
        backend_of(np.ones(2), library.to_array(np.ones(2)))


def test_jax_as_it_comes():
    """With 32 bits, which is its default, and without a warning about 64."""
    code = """
import jax, tomecore as tc
grid = tc.matching.partitions.partition_grid((3, 3), seed=0)
keys = jax.random.normal(jax.random.key(0), (2, 9, 4))
plans = [tc.bipartite_soft_matching(keys, r) for r in (0, 3)]
plans += [tc.kth_bipartite_soft_matching(keys, 2), tc.random_bipartite_soft_matching(keys, 3)]
plans += [tc.partition_matching(keys, *grid, r, chunk=2) for r in (None, 2)]
for plan in plans:
    assert {array.dtype.name for array in (plan.kept, plan.into, plan.slots)} == {"int32"}
mean, size = tc.merge_weighted(plan, plan.unmerge(plan.merge(keys)))
assert mean.dtype == size.dtype == "float32"
"""
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def layer(keys, x, size):
    plan = tc.bipartite_soft_matching(keys, 4, protected=1)
    mean, sizes = tc.merge_weighted(plan, x, size)
    return mean, sizes, plan.unmerge(plan.merge(x, "max")), plan.slots


def arguments(rng):
    size = rng.integers(1, 5, size=(2, 12)).astype("float32")
    return rng.normal(size=(2, 12, 4)), rng.normal(size=(2, 12, 3)), size


def test_jax_under_jit(rng):
    given = arguments(rng)
    found = jit(layer)(*map(jax.numpy.asarray, given))
    for one, expected in zip(found, layer(*given), strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-12, atol=1e-13)


def test_jax_under_vmap(rng):
    """A batch of batches: nothing looks at values."""
    given = [np.stack(pair) for pair in zip(arguments(rng), arguments(rng), strict=True)]
    found = jit(jax.vmap(layer))(*map(jax.numpy.asarray, given))
    for number in range(2):
        expected = layer(*(one[number] for one in given))
        for one, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(one[number], wanted, rtol=1e-12, atol=1e-13)


def test_jax_gradients_are_those_of_torch(rng):
    """Gradients of the tokens only: the choice has none."""
    keys, x, size = arguments(rng)
    torch = LIBRARIES["torch"]

    def weighed(keys, x, size):
        mean, _, _, _ = layer(keys, x, size)
        return (mean**2).sum()

    gradients = jit(jax.grad(weighed, argnums=(0, 1)))(*map(jax.numpy.asarray, (keys, x, size)))
    np.testing.assert_array_equal(gradients[0], np.zeros_like(keys))
    expected = torch.gradient(lambda x: weighed(torch.to_array(keys), x, torch.to_array(size)), x)
    np.testing.assert_allclose(gradients[1], expected, rtol=1e-12, atol=1e-13)


def test_gradient_of_matching_and_merging_the_same_tokens():
    x = np.random.default_rng(0).normal(size=(2, 9, 4))

    def total(x):
        return tc.merge_weighted(tc.bipartite_soft_matching(x, 3), x)[0].sum()

    torch = LIBRARIES["torch"]
    np.testing.assert_allclose(
        jax.grad(total)(jax.numpy.asarray(x)), torch.gradient(total, x), rtol=1e-6
    )


def test_a_replaced_backend_is_traced_with_the_first_call(clean_registry):
    """The search for gaps is nothing that a compiler can follow. (PyTorch 2.8 follows no look-up at all.)"""
    mine = Backend("mine", backend_of(torch.ones(2)).xp, device=lambda x: x.device)
    backends.register("torch", mine)
    keys = torch.randn(2, 9, 4)
    slots = torch.compile(
        lambda keys: tc.bipartite_soft_matching(keys, 3).slots, fullgraph=True, backend="eager"
    )(keys)
    assert torch.equal(slots, tc.bipartite_soft_matching(keys, 3).slots)
    assert backend_of(keys) is mine
