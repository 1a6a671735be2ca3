"""Represent a merge as data: which token goes where.

Every matching algorithm returns a :class:`MergePlan`, and everything else (merging, unmerging,
following tokens over layers, drawing them) only reads it. So an algorithm does not know what is merged,
and merging does not know which algorithm chose the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tomecore.backends import Array, Backend, backend_of
from tomecore.core.checks import integral, rank, same_batch
from tomecore.core.mean import compute_dtype, weighted_mean
from tomecore.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["MergePlan", "compute_dtype", "reduce_tokens", "take_rows"]

_REDUCTIONS = {"mean": "mean", "sum": "sum", "max": "max", "amax": "max"}


def take_rows(backend: Backend, x: Array, index: Array) -> Array:
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
        self, kept: Array, merged: Array, into: Array, *, backend: Backend | None = None
    ) -> None:
        backend = backend or backend_of(kept, merged, into)
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

    @classmethod
    def unchecked(cls, backend: Backend, tokens: Array, into: Array, num_slots: int) -> MergePlan:
        """Build a plan without checks, from arrays that a matching computed.

        ``tokens`` (B, N) holds the kept tokens, followed by the merged ones.
        """
        plan = cls.__new__(cls)
        plan._set(backend, into, num_slots, tokens)
        return plan

    made = unchecked  # the name it had before

    def _set(
        self,
        backend: Backend,
        into: Array,
        num_slots: int,
        tokens: Array | None,
        kept: Array | None = None,
        merged: Array | None = None,
    ) -> None:
        self.backend = backend
        #: (B, r) int: the output slot that each of ``merged`` goes to
        self.into = into
        self._num_slots = num_slots
        self._tokens = tokens
        self._kept = kept
        self._merged = merged
        self._slots: Array | None = None

    @property
    def kept(self) -> Array:
        """(B, n) int: the input token that each output slot starts from."""
        if self._kept is None:
            self._kept = self._tokens[:, : self._num_slots]  # type: ignore[index]
        return self._kept

    @property
    def merged(self) -> Array:
        """(B, r) int: the input tokens that disappear."""
        if self._merged is None:
            self._merged = self._tokens[:, self._num_slots :]  # type: ignore[index]
        return self._merged

    @property
    def num_tokens(self) -> int:
        """N: tokens before merging."""
        return self.num_slots + self.num_merged

    @property
    def num_slots(self) -> int:
        """n: tokens after merging."""
        return self._num_slots

    @property
    def num_merged(self) -> int:
        """r: tokens that disappear."""
        return int(self.into.shape[1])

    @property
    def slots(self) -> Array:
        """(B, N) int: the output slot that holds each input token."""
        if self._slots is None:
            xp, tokens = self.backend.xp, self._tokens
            own = self.backend.batched_arange(self.kept, 0, self.num_slots, 1)
            if tokens is None:
                tokens = xp.concat([self.kept, self.merged], axis=1)
            slots = xp.concat([own, self.into], axis=1)
            self._slots = self.backend.permute(tokens, slots)
        return self._slots

    def merge(self, x: Array, reduce: str = "mean", *, mode: str | None = None) -> Array:
        """Merge tokens, all with the same weight.

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

    def unmerge(self, y: Array) -> Array:
        """Return, for every input token, the value of the slot that holds it: (B, n, C) -> (B, N, C).

        Raises:
            ArgumentTypeError: ``y`` comes from another library than the plan.
            ArgumentValueError: ``y`` has the wrong shape.
        """
        self._check(y, "y", "(B, n, C)", self.num_slots)
        return take_rows(self.backend, y, self.slots)

    def __iter__(self) -> Iterator[Callable[..., Array]]:
        yield self.merge
        yield self.unmerge

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


def reduce_tokens(plan: MergePlan, x: Array, how: str) -> Array:
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


def _scatter(plan: MergePlan, scatter: Callable[[Array, Array, Array], Array], x: Array) -> Array:
    base = take_rows(plan.backend, x, plan.kept)
    if plan.num_merged == 0:
        return base
    return scatter(base, plan.into, take_rows(plan.backend, x, plan.merged))
