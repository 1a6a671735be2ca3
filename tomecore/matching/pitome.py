"""PiToMe: merge between two sets of tokens, ordered by how many similar ones each token has."""

from __future__ import annotations

from tomecore.backends import Array, TokenKeys
from tomecore.core.checks import real_number
from tomecore.core.plan import MergePlan
from tomecore.errors import ArgumentValueError
from tomecore.matching.context import Context
from tomecore.matching.selection import build_plan, nearest
from tomecore.matching.similarity import token_numbers, unit_keys

__all__ = ["pitome"]


def pitome(
    keys: TokenKeys,
    r: int,
    context: Context,
    *,
    form: str = "bsm",
    margin: float | None = None,
) -> MergePlan:
    """Merge the r most similar pairs, between two sets that share the tokens out by their energies.

    The energy of a token is the mean over the other tokens of f(cosine - margin), with f(x) = x above 0, and
    exp(x) - 1 below (an ELU). The tokens, from the highest energy to the lowest, alternate between two sets.
    In the form "bsm" each token of the first set has its most similar one of the second, and the r most
    similar of these pairs merge. In the form "pure" only the 2r tokens of highest energy share the sets, and
    all of the first set merge; the others, isolated tokens, are protected. Padding adds to no energy, and is
    in the first set as far as it has room. Slots are in ascending order.

    Cost: the similarities of all pairs, O(N^2 D), 4 times those of :func:`tome`; their exponentials; a sort.

    Source: PiToMe (Tran et al., Accelerating Transformers with Spectrum-Preserving Token Merging, NeurIPS
    2024), equation 4 and algorithm 1, whose form is "pure". The published code takes "bsm" in the first half
    of the layers of DeiT and "pure" in the second, and the reverse in MAE (``examples/pitome_forms.py``); it
    computes sizes that do not reach the attention. The paper has f(x) = cosine above the margin, its code
    cosine - margin, as here.

    Args:
        keys: (B, N, D) float32 or float64.
        r: tokens to merge, 0 < r <= (N - protected) // 2.
        context: its layer, number of layers, backend, prefix tokens and padding are read.
        form: "bsm" or "pure".
        margin: similarity above which a neighbour raises the energy; None: 0.9 - 0.9 * layer / num_layers,
            which falls from layer to layer.

    Raises:
        ArgumentTypeError, ArgumentValueError: ``form`` is neither, or ``margin`` is not a real number.
    """
    if form not in ("bsm", "pure"):
        raise ArgumentValueError(f"`form` must be 'bsm' or 'pure'; got {form!r}")
    if margin is None:
        margin = 0.9 - 0.9 * context.layer / context.num_layers
    margin = real_number(margin, "margin")
    backend, xp, front = context.backend, context.backend.xp, context.protected
    units = unit_keys(backend, keys)
    order = xp.argsort(_energies(context, units, margin), axis=1, descending=True, stable=True)
    order = order + front
    shared = keys.shape[1] - front if form == "bsm" else 2 * r
    pairs = order[:, :shared, None]
    first, second = backend.every_second(pairs, 0)[:, :, 0], backend.every_second(pairs, 1)[:, :, 0]
    if context.valid is not None:
        both = xp.concat([first, second], axis=1)
        padding = xp.take_along_axis(1 - xp.astype(context.valid, xp.float32), both, axis=1)
        places = xp.argsort(padding, axis=1, descending=True, stable=True)
        both, room = xp.take_along_axis(both, places, axis=1), first.shape[1]
        first, second = both[:, :room], both[:, room:]
    targets, best = nearest(context, units, first, second)
    rest = order[:, shared:]
    if form == "bsm":
        if context.valid is not None:
            padding = 1 - xp.astype(context.valid, best.dtype)
            best = best + 8 * xp.take_along_axis(padding, first, axis=1)
        ranking = xp.argsort(best, axis=1, descending=True, stable=True)
        rest = xp.take_along_axis(first, ranking[:, r:], axis=1)
        first = xp.take_along_axis(first, ranking[:, :r], axis=1)
        targets = xp.take_along_axis(targets, ranking[:, :r], axis=1)
    kept = xp.sort(xp.concat([rest, second], axis=1), axis=1)
    return build_plan(context, kept, first, targets)


def _energies(context: Context, units: TokenKeys, margin: float) -> Array:
    """Return (B, N - protected), the energy of each patch; 2 for padding, which is above all others.

    Each sum includes the similarity of the token to itself, set to exactly 1, so that equal tokens have equal
    energies.
    """
    backend, xp = context.backend, context.backend.xp
    patches = units[:, context.protected :, :]
    cosine = backend.products(patches, patches)
    numbers = token_numbers(backend, units, 0, patches.shape[1])
    own = (numbers[:, None] == numbers[None, :])[None, :, :]
    above = xp.where(own, xp.ones_like(cosine), cosine) - margin
    gain = xp.where(above > 0, above, xp.exp(above) - 1)
    if context.valid is None:
        return xp.sum(gain, axis=2) / patches.shape[1]
    valid = context.valid[:, context.protected :]
    energies = xp.sum(gain * xp.astype(valid, gain.dtype)[:, None, :], axis=2) / patches.shape[1]
    return xp.where(valid, energies, 2 * xp.ones_like(energies))
