"""Drop the programs that ``to_static(full_graph=True)`` traced of patched models when they are out of date.

A program keeps the r it was traced with, so the program of the model is dropped when r changes. A function or
a layer around the model has its own program; the blocks record it while they are traced, so that it can be
dropped too. Programs for ONNX export are traced separately.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from typing import Any

import paddle
from paddle import nn
from paddle.jit.dy2static.program_translator import StaticFunction

from tomecore.backends.paddle import exporting_onnx
from tomecore.errors import StaleProgramWarning

__all__ = ["drop_others", "drop_own", "noted", "watch_exports"]

#: tower -> the static functions around its model that were traced with it
_around: weakref.WeakKeyDictionary[nn.Layer, weakref.WeakSet[Any]] = weakref.WeakKeyDictionary()
#: towers for which a warning was given
_warned: weakref.WeakSet[nn.Layer] = weakref.WeakSet()


@paddle.jit.not_to_static
def noted(tower: nn.Layer) -> None:
    """Record the outermost static function that is being traced; it includes all the others.

    A function that ``paddle.jit.save`` creates for itself is left out: a saved program keeps its r.
    """
    found: Any = None
    saving, frame = False, sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__")
        # Read the locals of Paddle's frames only: in other frames that would keep deleted objects alive.
        if module == StaticFunction.__module__:
            owner = frame.f_locals.get("self")
            found = owner if isinstance(owner, StaticFunction) else found
        saving = saving or (module == "paddle.jit.api" and frame.f_code.co_name == "save")
        frame = frame.f_back  # type: ignore[assignment]
    if found is None or (saving and not _is_kept(found)):
        return
    _around.setdefault(tower, weakref.WeakSet()).add(found)


def _is_kept(function: Any) -> bool:
    """Whether the static function is the forward of a layer."""
    owner = owner_of(function)
    return owner is not None and vars(owner).get("forward") is function


def owner_of(function: Any) -> Any:
    """Return the layer of a static method; None for a plain function, ``function`` if the layer is gone."""
    try:
        return function.class_instance
    except RuntimeError:  # "has been deleted": the function can no longer run
        return function


def drop_own(model: nn.Layer) -> None:
    """Drop the program of the model itself, so that the next call traces it again."""
    drop(vars(model).get("forward"))


def drop_others(tower: nn.Layer, model: nn.Layer, *, warn: bool) -> None:
    """Drop the programs around the model; if ``warn``, warn about it once for each model."""
    others = []
    for one in _around.pop(tower, ()):
        owner = owner_of(one)
        if owner is not model and owner is not one and drop(one):
            others.append(one)
    if not others or not warn or tower in _warned:
        return
    _warned.add(tower)
    names = ", ".join(sorted({getattr(one, "__name__", "forward") for one in others}))
    warnings.warn(
        f"r was changed after to_static(full_graph=True) had traced {names} with the patched model inside. "
        "The programs that Paddle still holds are traced again at their next call, which takes seconds; a "
        "program that was saved or extracted (concrete_program) keeps the old r. Set r before tracing, or "
        "trace the patched model itself.",
        StaleProgramWarning,
        stacklevel=5,
    )


def drop(function: Any) -> bool:
    """Drop the programs of a static function; returns whether it held one."""
    try:
        programs = getattr(function, "program_cache", None)
    except RuntimeError:  # a function of SOT, which checks its guards in every call
        return False
    if programs is None or not len(programs):
        return False
    programs.clear()
    return True


def before_save(layer: Any, input_spec: Any, configs: Any) -> None:
    """Hook of ``paddle.jit.save``: drop programs traced earlier, so that ONNX export traces its own."""
    if not exporting_onnx():
        return
    if not isinstance(layer, nn.Layer):
        if any(layer in functions for functions in _around.values()):
            drop(layer)
        return
    modules = layer.sublayers(include_self=True)
    if any("_tome" in vars(module) for module in modules):
        for module in modules:
            drop(vars(module).get("forward"))


def watch_exports() -> None:
    """Register ``before_save`` with ``paddle.jit.save``; repeated calls register it once."""
    register: Any = getattr(paddle.jit.api, "_register_save_pre_hook", None)  # not public
    if register is not None:
        register(before_save)
