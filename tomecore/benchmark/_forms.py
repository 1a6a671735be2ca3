"""The free-drop baseline: the same model, dropping tokens instead of merging them."""

from __future__ import annotations

from typing import Any

from tomecore.adapters import handle_of

__all__ = ["free_drop"]


def free_drop(model: Any) -> Any:
    """Turn a patched model into one that drops tokens instead of merging them; for timing only.

    Raises:
        NotPatchedError: the model is not patched.
    """
    handle_of(model).free_drop()
    return model
