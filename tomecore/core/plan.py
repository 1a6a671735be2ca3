"""Represent a merge as data: which token goes where.

Every matching algorithm returns a :class:`MergePlan`, and everything else (merging, unmerging,
following tokens over layers, drawing them) only reads it. So an algorithm does not know what is merged,
and merging does not know which algorithm chose the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tomecore.backends import Array, Backend, Index, Rows, Sizes, Tokens, backend_of
from tomecore.core.checks import integral, rank, real, same_batch
from tomecore.core.mean import compute_dtype, weighted_mean
from tomecore.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["MergePlan", "compute_dtype", "reduce_tokens", "take_rows"]

_REDUCTIONS = {"mean": "mean", "sum": "sum", "max": "max", "amax": "max"}


def take_rows(backend: Backend, x: Tokens, index: Index) -> Tokens:
    """Gather rows: ``out[b, j] = x[b, index[b, j]]`` for x (B, N, C) and index (B, n), giving (B, n, C).

    This is a single take on flat rows, without an expanded index and without copying a strided slice.
    """
    xp, width = backend.xp, x.shape[2]
    rows = backend.flat_rows(index, x.shape[1])
    return xp.reshape(
        xp.take(xp.reshape(x, (-1, width)), rows, axis=0), (-1, index.shape[1], width)
    )


class MergePlan:
    """A merge of a batch: which token goes into which. Token numbers count the input tokens from 0.

    Args:
        kept: (B, n) int; the input token that output slot j starts from.
        merged: (B, r) int; the input tokens that disappear. Every input token occurs once, in ``kept``
            or in ``merged``.
        into: (B, r) int; the output slot that each of ``merged`` goes to.
        mean_weight: (B, N), 0 or more; the weight of each input token in means, in place of its size. A token
            of weight 0 has no effect; a slot whose tokens all weigh 0 keeps its own token. None: the sizes.
        size_weight: (B, r), 0 to 1; the share of the size of each of ``merged`` that its slot gains.
            None: all of it. A token is dropped if it weighs 0 in the mean and its slot gains nothing.
        keep_norm: whether means are scaled to the largest norm of the tokens that they average (the MLERP of
            ToFu: Kim et al., Token Fusion, WACV 2024).
        backend: the arrays' backend; inferred if left out.

    A plan unpacks as ``merge, unmerge = plan``.

    Raises:
        ArgumentTypeError: an array does not hold integers, or the arrays come from several libraries.
        ArgumentValueError: a wrong shape, or different batch sizes: a plan for one sample does not serve
            many. Values are not checked, because reading them would make the host wait for the device: if a
            token is missing, repeated or out of range, or a slot is out of range, the result is whatever the
            library's gather and scatter return.
    """

    def __init__(
        self,
        kept: Index,
        merged: Index,
        into: Index,
        *,
        mean_weight: Sizes | None = None,
        size_weight: Array | None = None,
        keep_norm: bool = False,
        backend: Backend | None = None,
    ) -> None:
        weights = [array for array in (mean_weight, size_weight) if array is not None]
        backend = backend or backend_of(kept, merged, into, *weights)
        for array, name, shape in ((kept, "kept", "(B, n)"), (merged, "merged", "(B, r)")):
            rank(array, name, shape)
        for array, name in ((kept, "kept"), (merged, "merged"), (into, "into")):
            integral(backend.xp, array, name)
        same_batch(merged, "merged", kept, "`kept`")
        if len(into.shape) == 2:
            same_batch(into, "into", kept, "`kept`")
        if tuple(into.shape[1:]) != tuple(merged.shape[1:]):
            raise ArgumentValueError(
                f"`into` must have the shape of `merged`, {tuple(merged.shape)}; "
                f"got {tuple(into.shape)}"
            )
        self._set(backend, into, int(kept.shape[1]), None, kept, merged)
        self._set_weights(mean_weight, size_weight, keep_norm)

    @classmethod
    def unchecked(
        cls,
        backend: Backend,
        tokens: Index,
        into: Index,
        num_slots: int,
        slots: Index | None = None,
    ) -> MergePlan:
        """Build a plan without checks, from arrays that a matching computed.

        ``tokens`` (B, N) holds the kept tokens, followed by the merged ones. ``slots`` (B, N) is what the
        property returns; None: it is computed when it is read.
        """
        plan = cls.__new__(cls)
        plan._set(backend, into, num_slots, tokens)
        plan._slots = slots
        return plan

    @classmethod
    def of_rows(cls, backend: Backend, rows: Rows, num_tokens: int, num_merged: int) -> MergePlan:
        """Build a plan without checks, from rows of the whole batch that a matching computed."""
        plan = cls.__new__(cls)
        plan._set(backend, None, num_tokens - num_merged, None)
        plan._rows, plan._num_merged = rows, num_merged
        return plan

    def weighted(
        self,
        *,
        mean_weight: Array | None = None,
        size_weight: Array | None = None,
        keep_norm: bool = False,
    ) -> MergePlan:
        """Return the same plan with these weights instead of its own, as in ``MergePlan(...)``."""
        plan = MergePlan.__new__(MergePlan)
        plan._set(self.backend, self._into, self._num_slots, self._tokens, self._kept, self._merged)
        plan._slots, plan._rows, plan._num_merged = self._slots, self._rows, self._num_merged
        plan._set_weights(mean_weight, size_weight, keep_norm)
        return plan

    made = unchecked  # the name it had before

    def _set(
        self,
        backend: Backend,
        into: Index | None,
        num_slots: int,
        tokens: Index | None,
        kept: Index | None = None,
        merged: Index | None = None,
    ) -> None:
        self.backend = backend
        self._into = into
        self._num_merged = 0 if into is None else int(into.shape[1])
        self._rows: Rows | None = None
        self._num_slots = num_slots
        self._tokens = tokens
        self._kept = kept
        self._merged = merged
        self._slots: Index | None = None
        self.mean_weight: Sizes | None = None
        self.size_weight: Array | None = None
        self.keep_norm = False

    def _set_weights(
        self, mean_weight: Sizes | None, size_weight: Array | None, keep_norm: bool
    ) -> None:
        for weight, name, shape, tokens in (
            (mean_weight, "mean_weight", "(B, N)", self.num_tokens),
            (size_weight, "size_weight", "(B, r)", self.num_merged),
        ):
            if weight is None:
                continue
            rank(weight, name, shape)
            real(self.backend.xp, weight, name)
            same_batch(weight, name, self.kept, "`kept`")
            if weight.shape[1] != tokens:
                raise ArgumentValueError(
                    f"`{name}` must have shape {shape}, here {tokens} on axis 1; got {tuple(weight.shape)}"
                )
        if not isinstance(keep_norm, bool):
            raise ArgumentTypeError(f"`keep_norm` must be True or False; got {keep_norm!r}")
        #: (B, N) or None: the weight of each input token in means, in place of its size
        self.mean_weight = mean_weight
        #: (B, r) or None: the share of the size of each of ``merged`` that its slot gains
        self.size_weight = size_weight
        #: whether means are scaled to the largest norm of the tokens that they average
        self.keep_norm = keep_norm

    @property
    def kept(self) -> Index:
        """(B, n) int: the input token that each output slot starts from."""
        if self._kept is None:
            self._kept = self._tokens_of_rows()[:, : self._num_slots]
        return self._kept

    @property
    def merged(self) -> Index:
        """(B, r) int: the input tokens that disappear."""
        if self._merged is None:
            self._merged = self._tokens_of_rows()[:, self._num_slots :]
        return self._merged

    @property
    def into(self) -> Index:
        """(B, r) int: the output slot that each of ``merged`` goes to."""
        if self._into is None:
            self._tokens_of_rows()
        return self._into

    @property
    def rows(self) -> Rows:
        """The plan as numbers of rows of the whole batch, for backends."""
        if self._rows is None:
            backend, xp = self.backend, self.backend.xp
            kept = backend.flat_rows(self.kept, self.num_tokens)
            into = backend.flat_rows(self.into, self.num_slots)
            merged = backend.flat_rows(self.merged, self.num_tokens)
            pairs = xp.concat([merged, xp.take(kept, into, axis=0)], axis=0)
            self._rows = Rows(kept, pairs, into)
        return self._rows

    def _tokens_of_rows(self) -> Index:
        """Return (B, N), the kept tokens, then the merged ones; they and ``into`` follow from rows."""
        if self._tokens is None:
            found = self.backend.tokens_of_rows(self.rows, self.num_tokens, self.num_slots)
            self._tokens, self._into = found
        return self._tokens

    @property
    def num_tokens(self) -> int:
        """N: the number of tokens before merging."""
        return self.num_slots + self.num_merged

    @property
    def num_slots(self) -> int:
        """n: the number of tokens after merging."""
        return self._num_slots

    @property
    def num_merged(self) -> int:
        """r: the number of tokens that disappear."""
        return self._num_merged

    @property
    def slots(self) -> Index:
        """(B, N) int: the output slot that holds each input token."""
        if self._slots is None:
            xp, tokens = self.backend.xp, self._tokens
            if tokens is None and self._merged is None:
                self._slots = self.backend.slots_of_rows(self.rows, self.num_tokens, self.num_slots)
                return self._slots
            own = self.backend.batched_arange(self.kept, 0, self.num_slots, 1)
            if tokens is None:
                tokens = xp.concat([self.kept, self.merged], axis=1)
            slots = xp.concat([own, self.into], axis=1)
            self._slots = self.backend.permute(tokens, slots)
        return self._slots

    def merge(self, x: Tokens, reduce: str = "mean", *, mode: str | None = None) -> Tokens:
        """Merge tokens, all with the same weight; a mean uses the plan's ``mean_weight`` if it has one.

        Args:
            x: (B, N, C).
            reduce: "mean" averages the destination and every token merged into it, "sum" adds them,
                "max" takes the maximum per channel ("amax" is the same). Half precision is
                accumulated in float32.
            mode: the name ToMe gives ``reduce``.

        Returns:
            (B, n, C), in the dtype of ``x``. For means over several layers, which must weight tokens by
            their sizes, see :func:`tomecore.merge_weighted`.

        Raises:
            ArgumentTypeError: ``x`` comes from another library than the plan, or is not floating point for
                "mean".
            ArgumentValueError: ``x`` has the wrong shape, or the reduction is unknown.
        """
        name, asked = ("reduce", reduce) if mode is None else ("mode", mode)
        how = _REDUCTIONS.get(asked) if isinstance(asked, str) else None
        if how is None:
            raise ArgumentValueError(
                f"`{name}` must be one of {', '.join(map(repr, _REDUCTIONS))}; got {asked!r}"
            )
        self._check(x, "x", "(B, N, C)", self.num_tokens)
        if how == "mean" and not self.backend.xp.isdtype(x.dtype, "real floating"):
            raise ArgumentTypeError(
                f'`x` must be real floating point for reduce="mean"; got dtype {x.dtype}'
            )
        return reduce_tokens(self, x, how)

    def unmerge(self, y: Tokens) -> Tokens:
        """Return, for every input token, the value of the slot that holds it: (B, n, C) -> (B, N, C).

        Raises:
            ArgumentTypeError: ``y`` comes from another library than the plan.
            ArgumentValueError: ``y`` has the wrong shape.
        """
        self._check(y, "y", "(B, n, C)", self.num_slots)
        return take_rows(self.backend, y, self.slots)

    def __iter__(self) -> Iterator[Callable[..., Tokens]]:
        yield self.merge
        yield self.unmerge

    def __getstate__(self) -> dict[str, Any]:
        """Return the arrays, for copies and pickles; the backend, which holds modules, is found by them."""
        return {
            "kept": self.kept,
            "merged": self.merged,
            "into": self.into,
            "mean_weight": self.mean_weight,
            "size_weight": self.size_weight,
            "keep_norm": self.keep_norm,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        kept, merged, into = (state[name] for name in ("kept", "merged", "into"))
        backend = backend_of(kept, merged, into)
        self._set(backend, into, int(kept.shape[1]), None, kept, merged)
        self.mean_weight, self.size_weight = state["mean_weight"], state["size_weight"]
        self.keep_norm = state["keep_norm"]

    def __repr__(self) -> str:
        return (
            f"MergePlan({self.num_tokens} -> {self.num_slots} tokens, "
            f"batch {self.into.shape[0]}, {self.backend.name})"
        )

    def _check(self, x: Array, name: str, shape: str, tokens: int) -> None:
        if backend_of(x) is not self.backend:
            raise ArgumentTypeError(
                f"`{name}` must come from the library of the plan, {self.backend.name}; "
                f"got {type(x).__module__}.{type(x).__qualname__}. "
                "Convert it first, for example with `to_array.from_dlpack(array)`."
            )
        rank(x, name, shape)
        same_batch(x, name, self.kept)
        if x.shape[1] != tokens:
            raise ArgumentValueError(
                f"`{name}` must have {tokens} tokens on axis 1, as this plan has; "
                f"got shape {tuple(x.shape)}"
            )


def reduce_tokens(plan: MergePlan, x: Tokens, how: str) -> Tokens:
    """Merge as :meth:`MergePlan.merge` does, without checks; ``how`` is "mean", "sum" or "max"."""
    backend, xp, dtype = plan.backend, plan.backend.xp, x.dtype
    if how == "mean":
        return weighted_mean(plan, x, None)[0]
    if how == "max":
        return _scatter(plan, backend.scatter_max, x)
    if not xp.isdtype(dtype, "real floating"):
        return _scatter(plan, backend.scatter_add, x)
    x = xp.astype(x, compute_dtype(xp, dtype), copy=False)
    return xp.astype(_scatter(plan, backend.scatter_add, x), dtype, copy=False)


def _scatter(
    plan: MergePlan, scatter: Callable[[Tokens, Index, Tokens], Tokens], x: Tokens
) -> Tokens:
    base = take_rows(plan.backend, x, plan.kept)
    if plan.num_merged == 0:
        return base
    return scatter(base, plan.into, take_rows(plan.backend, x, plan.merged))
