"""Use your own array library. It needs no code to give correct results, and a few lines to be fast.

A library that follows the array API standard works without changes, with a scatter from the standard's
functions. ``check`` tests whether it follows the standard. The library here is made up: NumPy arrays of
another class, which count the scatters. With your own library, scatter_add is one call.

    python examples/custom_backend.py
"""

import array_api_compat.numpy as xp
import numpy as np

import tomecore as tc
from tomecore.backends import Backend, check, register


class MyArray(np.ndarray):
    """Arrays of mylib. tomecore identifies the library by the module of the class or of a base class."""

    __module__ = "mylib"


def asarray(values: np.ndarray) -> np.ndarray:
    return np.asarray(values).view(MyArray)


calls = []


def scatter_add(base, index, updates):
    """Add to a copy of base: (B, n, C), (B, r), (B, r, C) -> (B, n, C). Repeated indices accumulate."""
    calls.append(index.shape)
    found = base.copy()  # never in place: `base` belongs to the caller
    np.add.at(found, (np.arange(len(index))[:, None], index), updates)
    return found


def main() -> None:
    check(Backend("mylib", xp, scatter_add))  # raises if anything is missing or wrong
    calls.clear()
    register("mylib", lambda: Backend("mylib", xp, scatter_add))
    generator = np.random.default_rng(0)
    keys, tokens = (generator.standard_normal((2, 197, 32)) for _ in "kx")
    plan = tc.bipartite_soft_matching(asarray(keys), r=16, protected=1)
    merged, sizes = tc.merge_weighted(plan, asarray(tokens))
    expected, _ = tc.merge_weighted(tc.bipartite_soft_matching(keys, r=16, protected=1), tokens)
    print("tokens:", tokens.shape[1], "->", merged.shape[1], "of", type(merged).__name__)
    print("sizes sum to the original number of tokens:", float(sizes.sum(-1)[0]))
    print("the same as NumPy, to the last bit:", bool((merged == expected).all()))
    print("scatters by mylib:", len(calls))


if __name__ == "__main__":
    main()
