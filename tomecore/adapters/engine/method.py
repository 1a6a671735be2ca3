"""The matching of a patched model: chosen by a name or a function, with the checks of its plans."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np

from tomecore.adapters.engine.class_attention import check_class_attention, check_values
from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import Spec
from tomecore.backends import Array
from tomecore.core.plan import MergePlan
from tomecore.errors import ArgumentTypeError, ArgumentValueError
from tomecore.matching import Context, Matching, find, name_of, needs_of, tome

__all__ = ["Method", "check_needs"]


class Method:
    """A matching, as the user chose it.

    Copies share it. It is pickled by its name, or by the name of the function.

    Args:
        chosen: a name of :mod:`tomecore.matching`, or a function (keys, r, context) -> MergePlan.

    Raises:
        ArgumentTypeError, ArgumentValueError: ``chosen`` is neither.
    """

    def __init__(self, chosen: str | Matching) -> None:
        self.chosen = chosen
        self.function: Matching = find(chosen)
        #: whether this is tome, which the kernels compute too
        self.is_tome = self.function is tome

    def plan(self, keys: Array, r: int, context: Context, tracing: bool) -> MergePlan:
        """Call the matching, and check its plan.

        Values are checked where the host can read them: on a CPU, but not inside transforms such as vmap.
        Shapes, libraries and devices are checked everywhere, and only these while a graph is traced.

        Raises:
            ArgumentTypeError, ArgumentValueError: the plan breaks the contract of a matching.
        """
        plan = self.function(keys, r, context)
        self._check_shapes(keys, r, context, plan, tracing)
        if not tracing:
            self._check_values(plan, context.protected)
        return plan

    def _check_shapes(
        self, keys: Array, r: int, context: Context, plan: Any, tracing: bool
    ) -> None:
        if not isinstance(plan, MergePlan):
            raise ArgumentTypeError(
                f"{self} must return a tomecore.MergePlan; got {type(plan).__module__}."
                f"{type(plan).__qualname__}. Return tomecore.MergePlan(kept, merged, into)."
            )
        if plan.backend is not context.backend:
            raise ArgumentTypeError(
                f"{self} must return a plan of {context.backend.name} arrays, as its keys are; got "
                f"{plan.backend.name}. Compute with context.backend.xp."
            )
        count = keys.shape[1]
        if plan.num_slots != count - r or plan.num_merged != r:
            raise ArgumentValueError(
                f"{self} got {count} tokens and r={r}, so its plan must keep {count - r} and merge {r}; it "
                f"keeps {plan.num_slots} and merges {plan.num_merged}"
            )
        if tracing:
            return
        if plan.kept.shape[0] != keys.shape[0]:
            raise ArgumentValueError(
                f"{self} got {keys.shape[0]} samples, and its plan has {plan.kept.shape[0]}; indices have "
                "one row for each sample"
            )
        devices = [str(context.backend.device(array)) for array in (plan.kept, keys)]
        if devices[0] != devices[1]:
            raise ArgumentValueError(
                f"{self} must return a plan on the device of its keys, {devices[1]}; got {devices[0]}"
            )

    def _check_values(self, plan: MergePlan, protected: int) -> None:
        read = plan.backend.host_values
        kept, merged, into = read(plan.kept), read(plan.merged), read(plan.into)
        if kept is None or merged is None or into is None:
            return
        front = kept[:, :protected]
        if (front != np.arange(protected)).any():
            sample = int((front != np.arange(protected)).any(axis=1).argmax())
            raise ArgumentValueError(
                f"{self} must keep the {protected} prefix tokens first and in order: `kept` must start with "
                f"{list(range(protected))}; it starts with {front[sample].tolist()} in sample {sample}"
            )
        tokens = np.sort(np.concatenate([kept, merged], axis=1), axis=1)
        wrong = (tokens != np.arange(tokens.shape[1])).any(axis=1)
        if wrong.any():
            sample = int(wrong.argmax())
            every = np.bincount(
                np.clip(tokens[sample], 0, tokens.shape[1]), minlength=tokens.shape[1]
            )
            missing = np.flatnonzero(every == 0)[:5].tolist()
            twice = np.flatnonzero(every > 1)[:5].tolist()
            raise ArgumentValueError(
                f"{self} must name every token once, in `kept` or in `merged`; in sample {sample} "
                f"{missing} are missing, and {twice} occur more than once or are out of range"
            )
        slots = kept.shape[1]
        outside = (into < protected) | (into >= slots)
        if outside.any():
            sample, column = np.argwhere(outside)[0].tolist()
            raise ArgumentValueError(
                f"{self} must merge into the slots {protected} to {slots - 1}, which hold no prefix token; "
                f"in sample {sample} token {merged[sample, column]} goes into slot {into[sample, column]}"
            )
        for name in ("mean_weight", "size_weight"):
            weight = getattr(plan, name)
            if weight is None:
                continue
            xp = plan.backend.xp  # NumPy has no bfloat16
            values = read(xp.astype(weight, xp.float32, copy=False))
            if values is None:
                continue
            if not np.isfinite(values).all() or (values < 0).any():
                raise ArgumentValueError(
                    f"{self} must return a `{name}` that is finite and not negative; got values from "
                    f"{values.min()} to {values.max()}"
                )

    def __repr__(self) -> str:
        if isinstance(self.chosen, str):
            return f"matching={self.chosen!r}"
        return f"matching={name_of(self.chosen)}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Method:
        return self

    def __reduce__(self) -> tuple[type[Method], tuple[str | Matching]]:
        if not isinstance(self.chosen, str):
            try:
                pickle.dumps(self.chosen)
            except Exception as error:  # pickle raises several kinds
                raise ArgumentTypeError(
                    f"{self} cannot be pickled with the model ({error}). Use a function that is defined at "
                    "the top level of a module, or functools.partial of one; or patch with a name that "
                    "tomecore.matching.register gave it."
                ) from error
        return Method, (self.chosen,)


def check_needs(method: Method, host: Host, spec: Spec, tower: Any, blocks: list[Any]) -> None:
    """Raise if the blocks lack what the matching declared with ``matching.needs``.

    Raises:
        UnsupportedModelError: the attention of the class token, or the values, are not available.
    """
    needed = needs_of(method.function)
    for block in blocks if needed else ():
        if "class_attention" in needed:
            check_class_attention(host, spec, tower, block)
        if "values" in needed:
            check_values(host, spec, tower, block)
