"""Define every error and warning that tomecore raises on purpose.

Each message names the argument or the module, the value found, what is allowed, and the next step.
Argument errors are also ``ValueError`` or ``TypeError``, so code that does not know tomecore can catch
them.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "ArgumentTypeError",
    "ArgumentValueError",
    "ClampWarning",
    "InnerHookWarning",
    "LostStateError",
    "MissingLibraryError",
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
    """An argument has the right type, but its value is not allowed."""


class ArgumentTypeError(TomeError, TypeError):
    """An argument has the wrong type."""


class MissingLibraryError(TomeError, ImportError):
    """A library that this needs is not installed; the message has the command that installs it."""


class UnsupportedLibraryError(ArgumentTypeError):
    """An array library lacks something that tomecore needs, or does it wrongly; ``faults`` lists all."""

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.faults = list(faults)


class UnsupportedModelError(TomeError):
    """Merging would break this model, or this way of calling it; the model was not changed."""


class NotPatchedError(TomeError):
    """The model is not patched: ``apply_patch`` was not called, or ``remove_patch`` undid it."""


class NoForwardError(TomeError):
    """There is no forward pass to take the requested result from."""


class LostStateError(TomeError, RuntimeError):
    """The state of a pass is lost: merged tokens came without their sizes, or were not restored."""


class ClampWarning(UserWarning):
    """``r`` exceeds what a layer can merge: at most half of its unprotected tokens."""


class InnerHookWarning(UserWarning):
    """A hook inside a block receives merged tokens, even within ``model.tome.all_tokens()``."""


class StaleProgramWarning(UserWarning):
    """``r`` was changed after a graph that contains the patched model was traced with the old value."""
