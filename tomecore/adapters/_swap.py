"""Changing what an object does by changing its class, and changing it back.

The new class is the old one behind some mixins, with the old one's name, so that name-based policies
(FSDP wrapping, transformers' output recording) go on working; parameters, keys, hooks and children stay
where they are. It is cached, so two patched blocks of one class still share a class.
"""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["Swapped", "original_class", "swap", "swapped_class", "unswap"]


class Swapped:
    """Base of all mixins: makes instances of a swapped class pickle by their original class."""

    _tome_original: type
    _tome_mixins: tuple[type, ...]

    def __reduce_ex__(self, protocol: Any) -> Any:
        cls = type(self)
        reduced: Any = super().__reduce_ex__(max(2, protocol))
        return (rebuild, (cls._tome_original, cls._tome_mixins), *reduced[2:])


def rebuild(original: type, mixins: tuple[type, ...]) -> Any:
    """Unpickle: an empty instance of the swapped class."""
    cls: Any = swapped_class(original, mixins)
    return cls.__new__(cls)


@functools.cache
def swapped_class(original: type, mixins: tuple[type, ...]) -> type:
    """The class of ``original`` behind ``mixins``, under the original's name."""
    return type(
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


def original_class(obj: Any) -> type:
    """The class of ``obj`` before it was swapped; its class if it was not."""
    return type(obj).__dict__.get("_tome_original", type(obj))


def swap(obj: Any, *mixins: type) -> None:
    obj.__class__ = swapped_class(original_class(obj), mixins)


def unswap(obj: Any) -> None:
    obj.__class__ = original_class(obj)
