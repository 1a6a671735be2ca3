"""Check in every pass that merges that the model is unchanged since it was patched.

Each check raises, and says what changed and what to do.
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.config import Config
from tomecore.adapters.engine.contract import Contract
from tomecore.adapters.engine.find import check_block
from tomecore.adapters.engine.spec import attribute
from tomecore.adapters.engine.verify import mixes_tokens
from tomecore.backends import Tokens
from tomecore.errors import LostStateError, UnsupportedModelError

__all__ = [
    "CHANGED_WAY_OUT",
    "check_children",
    "check_halves",
    "check_intact",
    "check_read",
    "contract_of",
    "note_contract",
    "where",
]

#: the advice for a block that was changed
CHANGED_WAY_OUT = (
    "Undo the change, or set model.r = 0 (without trim_last). To keep the change: call remove_patch, then "
    "apply_patch, which checks whether the changed model can merge."
)


def contract_of(config: Config) -> Contract:
    """Return what the halves of the blocks rely on; for a loaded model, check the blocks again first."""
    if config.contract is None:
        blocks = [block for block in config.blocks if block is not None]
        for block in blocks:
            check_block(config.host, config.spec, block, where(config, block))
        config.contract = Contract(config.host, config.spec, blocks, config.trim_last)
    return config.contract


def note_contract(config: Config) -> None:
    """Record what the halves rely on, right after the blocks were checked."""
    config.contract = Contract(config.host, config.spec, config.blocks, config.trim_last)


def check_halves(config: Config, block: Any, *, biased: bool, trimmed: bool = False) -> None:
    """Raise if ``block`` was changed so that its halves no longer compute the same as its forward."""
    reason = contract_of(config).why_changed(block, biased=biased, trimmed=trimmed)
    if reason is not None:
        start = "trim_last=True would give wrong results: " if trimmed else ""
        raise UnsupportedModelError(
            f"{start}{where(config, block)} changed since apply_patch: {reason}. {CHANGED_WAY_OUT}"
        )


def check_read(config: Config, block: Any) -> None:
    """Raise if the anatomy no longer gives the queries, keys and values of ``block``, or never did."""
    reason = contract_of(config).why_unread(block)
    if reason is not None:
        raise UnsupportedModelError(
            f"{config.method} reads the attention of {where(config, block)}, which is not available: "
            f"{reason}. Undo any change since apply_patch, or use a matching that reads no attention, such "
            "as matching='tome'."
        )


def check_children(config: Config, block: Any, x: Tokens, left: int) -> None:
    """Raise if a child that was put into the block after the patch mixes tokens; a trial shows it.

    Args:
        config: the config of the model.
        block: the block that is about to run.
        x: (B, n, C), the tokens that enter it.
        left: number of tokens after the merge.
    """
    for name, module in contract_of(config).unknown_children(block):
        if module is None or module in config.tried or config.host.wraps(module):
            continue
        if mixes_tokens(config.host, config.spec, block, module, x, left):
            raise UnsupportedModelError(
                f"{name} in {where(config, block)} was replaced by a {type(module).__qualname__} after "
                "apply_patch. Its output for a token depends on other tokens, and merging leaves fewer of "
                f"them, in another order. {CHANGED_WAY_OUT}"
            )
        config.tried.add(module)


def check_intact(config: Config) -> None:
    """Raise if the tower was changed after the patch so that merging would give wrong results."""
    tower = config.tower
    if tower is None:
        raise LostStateError(
            f"a patched block of {config.spec.family} runs without the model that it was patched in: it was "
            "copied or loaded by itself. Call remove_patch on it, then apply_patch on the model that it "
            "belongs to now"
        )
    blocks = list(attribute(tower, config.layers))
    if blocks != config.blocks:
        check_list(config, blocks)
    if not config.restore:
        reason = config.spec.why_restore(tower)
        if reason is not None:
            raise UnsupportedModelError(
                f"restore=False would give wrong results: {reason}. The model was changed after "
                "apply_patch(restore=False); call apply_patch(model) again."
            )
    if config.trim_last:
        reason = config.spec.trim.why_not(tower)  # type: ignore[union-attr]
        if reason is not None:
            raise UnsupportedModelError(
                f"trim_last=True would give wrong results: {reason}. The model was changed after "
                "apply_patch(trim_last=True); call apply_patch(model) again without it."
            )


def check_list(config: Config, blocks: list[Any]) -> None:
    """Raise unless each block is the patched one, or a wrapper (compiled, FSDP) around it."""
    if len(blocks) != config.num_layers:
        raise LostStateError(
            f"the model has {len(blocks)} blocks, but had {config.num_layers} when it was patched; call "
            "apply_patch on it again"
        )
    for index, (now, patched) in enumerate(zip(blocks, config.blocks, strict=True)):
        if all(module is not patched for _, module in config.host.named_modules(now)):
            raise LostStateError(
                f"block {index} was replaced by a {type(now).__name__} after the model was patched; call "
                "apply_patch on the model again"
            )


def where(config: Config, block: Any) -> str:
    """Return the position and family of a block, for messages."""
    return f"{config.layers}[{vars(block)['_tome_index']}] of {config.spec.family}"
