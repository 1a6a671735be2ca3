"""Every error tomecore raises on purpose, in one place.

Each message names the argument or the module, the value found, what is allowed, and what to do next.
Argument errors are also ``ValueError`` or ``TypeError``, so code that knows nothing of tomecore can
catch them.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "ArgumentTypeError",
    "ArgumentValueError",
    "ClampWarning",
    "InnerHookWarning",
    "LostStateError",
    "NoForwardError",
    "NotPatchedError",
    "StaleProgramWarning",
    "TomeError",
    "UnsupportedLibraryError",
    "UnsupportedModelError",
]


class TomeError(Exception):
    """Base class of all errors raised by tomecore."""


class ArgumentValueError(TomeError, ValueError):
    """An argument has the right type and a value that is not allowed."""


class ArgumentTypeError(TomeError, TypeError):
    """An argument has a type that is not allowed."""


class UnsupportedLibraryError(ArgumentTypeError):
    """An array library lacks something that tomecore needs, or does it wrongly; ``faults`` lists all."""

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.faults = list(faults)


class UnsupportedModelError(TomeError):
    """The model, or the way it is called, is one that merging would break; nothing was changed."""


class NotPatchedError(TomeError):
    """The model was never given to ``apply_patch``, or ``remove_patch`` came in between."""


class NoForwardError(TomeError):
    """A result of the last forward pass was asked for and there is none."""


class LostStateError(TomeError, RuntimeError):
    """A patched block got tokens without the sizes that belong to them."""


class ClampWarning(UserWarning):
    """``r`` asks a layer to merge more tokens than it can: at most half of those not protected."""


class InnerHookWarning(UserWarning):
    """A hook inside a block sees merged tokens, also within ``model.tome.all_tokens()``."""


class StaleProgramWarning(UserWarning):
    """``r`` was changed after a graph around the patched model had been traced with the old one."""
