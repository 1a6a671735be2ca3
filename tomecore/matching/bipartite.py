"""Bipartite soft matching (ToMe: Bolya et al., Token Merging: Your ViT But Faster, ICLR 2023, section 3)."""

from __future__ import annotations

from tomecore.backends import Backend, Mask, TokenKeys, backend_of
from tomecore.core.checks import floating, rank, same_batch, whole_number
from tomecore.core.plan import MergePlan
from tomecore.errors import ArgumentValueError
from tomecore.matching.context import Context
from tomecore.matching.similarity import identity_plan, unit_keys, without_infinite_padding

__all__ = ["bipartite_soft_matching", "match_bipartite", "tome"]


def bipartite_soft_matching(
    keys: TokenKeys,
    /,
    r: int,
    class_token: bool = False,
    distill_token: bool = False,
    *,
    protected: int | None = None,
    valid: Mask | None = None,
    backend: Backend | None = None,
) -> MergePlan:
    """Choose the r even tokens that are most similar to an odd token, and merge each into that token.

    Args:
        keys: (B, N, D) real floating point; tokens are compared by the cosine of their keys. A key
            of norm 0 has similarity 0 to every token.
        r: tokens to merge, 0 <= r; capped at (N - protected) // 2.
        class_token: ToMe's name for ``protected=1``.
        distill_token: a second protected token; needs ``class_token``.
        protected: number of prefix tokens, which neither merge nor are merged into.
        valid: (B, N) bool, False for padding. Padding merges first, and a token merges into padding
            only if every odd token is padding. Merged with size 0 (:func:`tomecore.merge_weighted`),
            padding has no effect. None: no padding.
        backend: the keys' backend; inferred if left out.

    Returns:
        A plan whose slots are the protected tokens, then the unmerged even tokens, then the odd
        tokens. The unmerged even tokens are in ascending order if any token is protected; otherwise
        they are in descending order of similarity, as in ToMe. Ties go to the first token.

    Raises:
        ArgumentTypeError: ``r`` or ``protected`` is not an integer, or ``keys`` is not floating point.
        ArgumentValueError: a negative number, a wrong shape, ``distill_token`` without
            ``class_token``, or ``protected`` together with either of them.
    """
    backend = backend or backend_of(keys)
    rank(keys, "keys", "(B, N, D)")
    floating(backend.xp, keys, "keys")
    r = whole_number(r, "r", unit="tokens")
    protected = _count_protected(protected, class_token, distill_token)
    tokens = keys.shape[1]
    r = max(0, min(r, (tokens - protected) // 2))
    if r == 0:
        return identity_plan(backend, keys, tokens)

    if valid is not None:
        rank(valid, "valid", "(B, N)")
        same_batch(valid, "valid", keys, "`keys`")
        if valid.shape[1] != tokens or not backend.xp.isdtype(valid.dtype, "bool"):
            raise ArgumentValueError(
                f"`valid` must be bool with {tokens} tokens on axis 1, as `keys` has; "
                f"got {valid.dtype} of shape {tuple(valid.shape)}"
            )
    return match_bipartite(backend, keys, r, protected, valid)


def match_bipartite(
    backend: Backend, keys: TokenKeys, r: int, protected: int, valid: Mask | None
) -> MergePlan:
    """Compute :func:`bipartite_soft_matching` without checks, for 0 < r <= (N - protected) // 2."""
    xp, count = backend.xp, keys.shape[1]
    first_even, first_odd = protected + protected % 2, protected + 1 - protected % 2
    units = unit_keys(backend, without_infinite_padding(backend, keys, valid))
    even, odd = backend.even_and_odd(units, first_even, first_odd)
    cosine = backend.products(even, odd)
    if valid is not None:
        padding = 1 - xp.astype(valid, cosine.dtype)[:, :, None]
        cosine = cosine - 4 * xp.permute_dims(backend.every_second(padding, first_odd), (0, 2, 1))
    best, where = backend.max_rows(cosine)
    if valid is not None:
        best = best + 8 * backend.every_second(padding, first_even)[:, :, 0]
    order = xp.argsort(best, axis=1, descending=True, stable=True)
    partner = backend.argmax_rows(cosine, where, order[:, :r])
    rows = backend.rows_of_pairs(order, partner, r, protected, count)
    if rows is not None:
        return MergePlan.of_rows(backend, rows, count, r)
    numbers = backend.take_range(order, first_even, count, 2)
    gone, stay = numbers[:, :r], numbers[:, r:]
    tokens = [stay, backend.batched_arange(order, first_odd, count, 2), gone]
    if protected:
        front = backend.batched_arange(order, 0, protected, 1)
        tokens = [front, xp.sort(stay, axis=1), *tokens[1:]]
    into = xp.astype(partner, order.dtype, copy=False) + (protected + stay.shape[1])
    return MergePlan.unchecked(backend, xp.concat(tokens, axis=1), into, count - r)


def tome(keys: TokenKeys, r: int, context: Context) -> MergePlan:
    """Merge the r even tokens that are most similar to an odd token, each into that token (ToMe).

    It is :func:`bipartite_soft_matching`, as the matching of a patched model; the default there.

    Args:
        keys: (B, N, D) float32 or float64.
        r: tokens to merge, 0 < r <= (N - protected) // 2.
        context: its backend, prefix tokens and padding are read.
    """
    return match_bipartite(context.backend, keys, r, context.protected, context.valid)


def _count_protected(protected: int | None, class_token: bool, distill_token: bool) -> int:
    if distill_token and not class_token:
        raise ArgumentValueError(
            "`distill_token=True` needs `class_token=True`: the distillation token comes second. "
            "For other prefix tokens use `protected=`."
        )
    named = int(bool(class_token)) + int(bool(distill_token))
    if protected is None:
        return named
    if named:
        raise ArgumentValueError(
            f"`protected={protected!r}` and `class_token=`/`distill_token=` both set the number of prefix "
            "tokens; pass only one of the two"
        )
    return whole_number(protected, "protected")
