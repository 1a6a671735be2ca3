"""Change the behaviour of an object by swapping its class, and undo it.

The new class inherits from some mixins and the old class, and keeps the old name, so that name-based policies
(FSDP wrapping, transformers' output recording) still work; parameters, keys, hooks and children stay
unchanged. New classes are cached, so two patched blocks of one class still share a class.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from tomecore.errors import UnsupportedModelError

__all__ = ["Swapped", "make_swapped_class", "original_class", "own_method", "swap", "unswap"]


#: modules in which the frameworks define the base classes of all modules
_FRAMEWORKS = ("torch.nn.modules.module", "paddle.nn.layer.layers", "builtins")


class Swapped:
    """Base class of all mixins: instances of a swapped class are pickled by their original class."""

    _tome_original: type
    _tome_mixins: tuple[type, ...]
    #: whether the public methods of the class are wrapped, see :func:`watch_methods`
    watches_methods = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy or a loaded pickle, and register it with its config."""
        inherited = getattr(super(), "__setstate__", None)
        if inherited is None:
            vars(self).update(state)
        else:
            inherited(state)
        config = vars(self).get("_tome")
        if config is not None:
            config.adopt(self)

    def __prepare_scriptable__(self) -> Any:
        """Refuse ``torch.jit.script``, which calls this method first."""
        raise UnsupportedModelError(
            f"torch.jit.script cannot compile a patched {type(self).__name__}: call remove_patch first, or "
            "use torch.compile, torch.export or ONNX, which support merging"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        cls = type(self)
        reduced: Any = super().__reduce_ex__(max(2, protocol))
        return (rebuild, (cls._tome_original, cls._tome_mixins), *reduced[2:])


def rebuild(original: type, mixins: tuple[type, ...]) -> Any:
    """Create an empty instance of the swapped class, for unpickling."""
    cls: Any = make_swapped_class(original, mixins)
    return cls.__new__(cls)


@functools.cache
def make_swapped_class(original: type, mixins: tuple[type, ...]) -> type:
    """Return a class that inherits from ``mixins`` and ``original``, under the original's name."""
    cls = type(
        original.__name__,
        (*mixins, original),
        {
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__doc__": original.__doc__,
            "_tome_original": original,
            "_tome_mixins": mixins,
        },
    )
    if any(getattr(mixin, "watches_methods", False) for mixin in mixins):
        watch_methods(cls, original)
    return cls


def watch_methods(cls: type, original: type) -> None:
    """Wrap the methods of ``original`` so that they run within a call of the model, as ``__call__`` does.

    In Paddle ``forward`` is not wrapped, because static graphs convert its source.
    """
    eager = not any(parent.__module__.startswith("paddle.") for parent in original.__mro__)
    for parent in original.__mro__:
        if parent.__module__ in _FRAMEWORKS:
            continue
        for name, function in vars(parent).items():
            ours = isinstance(function, types.FunctionType) and not name.startswith(("__", "_tome"))
            if ours and (name != "forward" or eager) and name not in vars(cls):
                setattr(cls, name, within_call(cls, name, getattr(original, name)))


def within_call(cls: type, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method ``name`` of ``cls``, wrapped to run within a call of the model."""

    @functools.wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self, cls):  # the method was stored, and the patch was removed since
            return function(self, *args, **kwargs)
        patched: Any = self
        return patched._tome_within(getattr(super(cls, self), name), args, kwargs)

    method.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return method


def own_method(mixin: type, obj: Any, name: str) -> Any:
    """Return the method that ``mixin`` overrides in ``obj``; for an unpatched object, its own method.

    A stored method of a patched object may outlive the patch, and ``type(obj)(...)`` creates an object of the
    swapped class that was never patched.
    """
    if isinstance(obj, mixin):
        return getattr(super(mixin, obj), name)
    return getattr(type(obj), name).__get__(obj)


def original_class(obj: Any) -> type:
    """Return the class of ``obj`` before it was swapped; its class if it was not swapped."""
    original: type = type(obj).__dict__.get("_tome_original", type(obj))
    return original


def swap(obj: Any, *mixins: type) -> None:
    """Change the class of ``obj`` to a subclass of it, with ``mixins`` as the first bases."""
    obj.__class__ = make_swapped_class(original_class(obj), mixins)


def unswap(obj: Any) -> None:
    """Undo :func:`swap`."""
    obj.__class__ = original_class(obj)
