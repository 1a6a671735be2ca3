"""The compiled kernels at the edges of what numbers can be, against the definition."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_cases import KINDS, asked, defined, fused

ROUNDS = 40


@pytest.mark.parametrize("values", ["largest", "infinite", "smallest"])
@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_kernels_at_the_edges(kind, values):
    """Few kinds of key, so that many tokens merge into one; values at random from the edges.

    All similarities of a kind differ: on some CPUs, Paddle's square root of 1 is less than 1 at some places.
    """
    largest = 3.38e38 if kind.rounding > 1e-3 else 3.4028234663852886e38
    choices = {
        "largest": [largest, -largest, largest / 2, 1.0],
        "infinite": [np.inf, -np.inf, largest, -1.0, np.nan, 2.0],
        "smallest": [1.2e-38, -1.2e-38, 3e-37, 0.0],
    }[values]
    rng, seen = np.random.default_rng(3), []
    for _ in range(ROUNDS):
        key = np.eye(8)[rng.integers(0, 4, (2, 23))]
        apart = rng.permuted(np.tile(np.linspace(0.05, 0.5, 23), (2, 1)), axis=1)
        key[:, ::2, 4], key[:, 1::2, 5] = apart[:, ::2], apart[:, 1::2]
        key = key[:, :, None]
        _, x, sizes, source = asked(kind, key, weighted=True)
        x = kind.to_array(rng.choice(choices, size=tuple(x.shape)))
        found = fused(asked(kind, key)[0], x, sizes, source, 9, 1)
        wanted = defined(kind, key, x, sizes, source, 9, 1)
        got, expected = kind.to_numpy(found.x), kind.to_numpy(wanted.x)
        seen.append(expected)
        allowed = 2e-41 if values == "smallest" else 1e-6 * largest
        np.testing.assert_allclose(
            got.astype(float), expected.astype(float), kind.rounding, allowed
        )
    finite = np.isfinite(np.stack(seen))
    assert finite.all() != (values == "infinite")
