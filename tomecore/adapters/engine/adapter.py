"""The calls that a user makes, the same in every framework: one :class:`Adapter` for each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

from tomecore.adapters.engine import patch
from tomecore.adapters.engine.handle import Handle
from tomecore.adapters.engine.host import Host, PropAttn
from tomecore.adapters.engine.spec import Spec
from tomecore.schedule import R

__all__ = ["Adapter"]

Model = TypeVar("Model")


class Adapter:
    """Token merging for the models of one framework; its methods are the functions of an adapter module.

    Args:
        module: the adapter module that holds it as ``ADAPTER``; it pickles as that name.
        host: the framework.
        specs: the families it recognises, in the order in which they are tried.
        fallback: for blocks that no family knows, where they prove to do what this spec says; None: refuse.
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
        protected: int | str | None = None,
        prop_attn: PropAttn | None = None,
        trace_source: bool = False,
        restore: bool = True,
        trim_last: bool = False,
    ) -> Model:
        """Patch a vision transformer in place so that its blocks merge tokens (ToMe, Bolya et al. 2023).

        Patching again changes the settings: the last call's arguments win, omitted ``r`` and ``protected``
        are kept.

        Args:
            model: a supported model, or a module (in Paddle, a layer) that contains exactly one.
            r: tokens merged per layer: int | (r, inflect) | list | schedule object, see
                :func:`tomecore.parse_r`; 0 the first time. Later: ``model.r = ...``.
            protected: prefix tokens, which never merge. None or "auto" the first time: the class,
                distillation and register tokens that the family knows. A number for models with more of
                them (prompts, registers of your own, several class tokens); kept when patched again, until
                "auto".
            prop_attn: proportional attention, in which a token counts as often as the tokens it stands
                for (ToMe, eq. 1). None: the family's default. True: in the form that was measured to be
                fastest here, on a GPU a mask. "column", in PyTorch: by a column of the keys, the same
                function to rounding, where the attention calls ``scaled_dot_product_attention``; it needs
                no mask, which GPUs' flash kernels do not take. What is traced without Dynamo
                (``torch.export``, ONNX) keeps the mask.
            trace_source: keep the map from original tokens to slots in ``model.tome.source``.
            restore: the last block hands back all N tokens, each original position with its merged
                token, so that everything behind it works as before. False: the shorter sequence.
            trim_last: for models that read prefix tokens only (class, distillation ...): the last block
                computes only these, and merges nothing. Same logits, to rounding, and faster, with r=0
                too. It then returns (B, P, C), the first P tokens, whatever ``restore`` says; all of them
                where readers of intermediate layers want them. ``model.tome`` describes the tokens that
                the last block attends to. Refused where more than these tokens may be read.

        Returns:
            The same model, now with ``model.r`` and ``model.tome``.

        Raises:
            UnsupportedModelError: nothing that tomecore knows how to merge in, or a setting that would be
                wrong for this model; the model is untouched.
            ArgumentTypeError, ArgumentValueError: a bad argument.
        """
        patched: Model = patch.patch(
            self.host,
            self.specs,
            model,
            r=r,
            protected=protected,
            prop_attn=prop_attn,
            trace_source=trace_source,
            restore=restore,
            trim_last=trim_last,
        )
        return patched

    def remove_patch(self, model: Model) -> Model:
        """Undo :func:`apply_patch`, leaving no trace; returns the model.

        Raises:
            NotPatchedError: the model is not patched.
            UnsupportedModelError: something else changed the class of a patched block since.
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
        """Teach :func:`apply_patch` a family of models: yours. Asked before tomecore's own, the last first.

        Args:
            spec: what there is to know about the block; see :class:`tomecore.adapters.Spec` and
                ``examples/custom_block.py``. A spec of the same ``family`` is replaced.

        Raises:
            ArgumentTypeError: not a Spec.
        """
        patch.register(self.host, spec)

    def __reduce__(self) -> tuple[Callable[[str], Adapter], tuple[str]]:
        return adapter_of, (self.module,)


def adapter_of(module: str) -> Adapter:
    """The adapter of an adapter module."""
    adapter: Adapter = importlib.import_module(module).ADAPTER
    return adapter
