"""What a patched model is measured against: the same model that drops tokens for nothing."""

from __future__ import annotations

from typing import Any

from tomecore.adapters.engine.config import Config
from tomecore.adapters.engine.patch import config_of
from tomecore.adapters.engine.state import Run
from tomecore.backends import Array
from tomecore.errors import NotPatchedError

__all__ = ["config_of_patched", "drop_tokens", "free_drop"]


def drop_tokens(
    config: Config, block: Any, x: Array, keys: list[Array], run: Run, amount: int
) -> tuple[Array, Run]:
    """A reduction that costs nothing: the last ``amount`` tokens go."""
    return x[:, : run.width - amount], run


def free_drop(model: Any) -> Any:
    """Turn a patched model into one that drops tokens instead of merging them; for timing only."""
    found = config_of_patched(model)
    found.reduce = drop_tokens
    found.restore = False
    return model


def config_of_patched(model: Any) -> Config:
    """The settings of a patched model.

    Raises:
        NotPatchedError: the model is not patched.
    """
    found = config_of(model)
    if found is None:
        raise NotPatchedError(f"this {type(model).__name__} is not patched; call apply_patch first")
    return found
