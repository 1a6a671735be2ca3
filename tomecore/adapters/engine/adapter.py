"""Define the functions that users call, the same for every framework: one :class:`Adapter` for each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from tomecore.adapters.engine import patch
from tomecore.adapters.engine.handle import Handle
from tomecore.adapters.engine.host import Host, PropAttn
from tomecore.adapters.engine.spec import Spec
from tomecore.matching import Matching
from tomecore.schedule import R

__all__ = ["Adapter"]

Model = TypeVar("Model")


class Adapter:
    """Token merging for the models of one framework; its methods are the functions of an adapter module.

    Args:
        module: name of the adapter module that holds it as ``ADAPTER``; it is pickled by this name.
        host: the framework.
        specs: the families that it recognises, in the order in which they are tried.
        fallback: spec for blocks that no family knows, used if a trial shows that they do what it says.
            None: refuse such blocks.
    """

    def __init__(
        self, module: str, host: Host, specs: tuple[Spec, ...], fallback: Spec | None = None
    ) -> None:
        self.module = module
        self.host = host
        self.specs = specs
        host.fallback = fallback

    def apply_patch(
        self,
        model: Model,
        *,
        r: R | None = None,
        matching: str | Matching | None = None,
        protected: int | str | None = None,
        prop_attn: PropAttn | None = None,
        trace_source: bool = False,
        restore: bool = True,
        trim_last: bool = False,
    ) -> Model:
        """Patch a vision transformer in place so that its blocks merge tokens (ToMe, Bolya et al. 2023).

        Patching a model again changes its settings: the arguments of the last call win; ``r``,
        ``matching`` and ``protected`` are kept if they are omitted.

        Args:
            model: a supported model, or a module (in Paddle, a layer) that contains exactly one.
            r: tokens merged per layer: int | (r, inflect) | list | schedule object, see
                :func:`tomecore.parse_r`. The default of an unpatched model is 0. ``model.r = ...`` changes
                it after the patch.
            matching: which tokens merge: a name of :mod:`tomecore.matching`, or a function
                (keys (B, N, D), r, context) -> :class:`tomecore.MergePlan`, see
                :class:`tomecore.matching.Context`. The default of an unpatched model is "tome", the only
                matching that has compiled kernels.
            protected: number of prefix tokens, which never merge. "auto", the default of an unpatched model:
                the class, distillation and register tokens that the family knows. Pass a number for models
                with more of them (prompts, registers of your own, several class tokens).
            prop_attn: proportional attention, in which a token counts as often as the tokens that are merged
                into it (ToMe, eq. 1). None: the family's default. True: in the form that was measured to be
                fastest here; on a GPU a mask. "column" (PyTorch only): as a column of the keys, which
                computes the same up to rounding if the attention calls ``scaled_dot_product_attention``.
                It needs no mask, and the flash kernels of GPUs do not take one. Graphs that are traced
                without Dynamo (``torch.export``, ONNX) keep the mask.
            trace_source: keep the map from original tokens to slots in ``model.tome.source``.
            restore: the last block returns all N tokens, each original position with its merged token,
                so that everything after it works as before. False: it returns the shorter sequence.
            trim_last: for models that read only the prefix tokens (class, distillation ...): the last
                block computes only these, and merges nothing. The logits are the same up to rounding, and
                the model is faster, even with r=0. The block then returns (B, P, C), the first P tokens,
                whatever ``restore`` is; it returns all tokens if intermediate layers are read.
                ``model.tome`` describes the tokens that the last block attends to. Refused if other
                tokens may be read.

        Returns:
            The same model, now with ``model.r`` and ``model.tome``.

        Raises:
            UnsupportedModelError: tomecore does not know how to merge in this model, or a setting would
                give wrong results for it; the model is unchanged.
            ArgumentTypeError, ArgumentValueError: an argument has a wrong type or value.
        """
        patched: Model = patch.patch(
            self.host,
            self.specs,
            model,
            r=r,
            matching=matching,
            protected=protected,
            prop_attn=prop_attn,
            trace_source=trace_source,
            restore=restore,
            trim_last=trim_last,
        )
        return patched

    def remove_patch(self, model: Model) -> Model:
        """Undo :func:`apply_patch` completely, and return the model.

        Raises:
            NotPatchedError: the model is not patched.
            UnsupportedModelError: other code has changed the class of a block after it was patched.
        """
        unpatched: Model = patch.unpatch(self.host, model)
        return unpatched

    def handle(self, model: Any) -> Handle:
        """Return ``model.tome``: settings, and the tokens, sizes and source of the last forward pass.

        Raises:
            NotPatchedError: the model is not patched.
        """
        return patch.handle(self.host, model)

    def register(self, spec: Spec) -> None:
        """Add a model family to :func:`apply_patch`; the last one added is tried first, then tomecore's own.

        Args:
            spec: the description of the block; see :class:`tomecore.adapters.Spec` and
                ``examples/custom_block.py``. It replaces a registered spec of the same ``family``.

        Raises:
            ArgumentTypeError: ``spec`` is not a Spec.
        """
        patch.register(self.host, spec)

    def __reduce__(self) -> tuple[Callable[[str], Adapter], tuple[str]]:
        return adapter_of, (self.module,)


def adapter_of(module: str) -> Adapter:
    """Return the adapter of an adapter module; used to unpickle it."""
    adapter: Adapter = importlib.import_module(module).ADAPTER
    return adapter
