"""Refuse to load models that were patched and pickled before the modules of tomecore moved."""

from __future__ import annotations

from typing import Any

from tomecore.errors import UnsupportedModelError

__all__: list[str] = []


def __getattr__(name: str) -> Any:
    """Raise and say what to do; ``pickle`` looks here for the function that rebuilds a patched module."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise UnsupportedModelError(
        "this model was patched and pickled by an earlier tomecore, whose modules have moved since. Load it "
        "with that version, call remove_patch and save it again (or save its state_dict); then call "
        "apply_patch with this version."
    )
