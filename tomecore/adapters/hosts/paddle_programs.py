"""Programs that ``to_static(full_graph=True)`` made of patched models: with an old r, or on the way to ONNX.

A program keeps the r it was traced with. That of a model itself is dropped when r changes. A function or a
layer around the model has one of its own; the blocks note it while they are traced, so that it can be dropped
too.
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

#: tower -> the static functions around its model that were traced with it, and whether a warning was given
_around: weakref.WeakKeyDictionary[nn.Layer, weakref.WeakSet[Any]] = weakref.WeakKeyDictionary()
_warned: weakref.WeakSet[nn.Layer] = weakref.WeakSet()


@paddle.jit.not_to_static
def noted(tower: nn.Layer) -> None:
    """Note the static function that is being traced: the outermost, into which all others are drawn.

    Not one that ``paddle.jit.save`` makes for itself: what is saved keeps its r.
    """
    found: Any = None
    saving, frame = False, sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__")
        # Of Paddle's frames only: looking at the locals of others would keep what they delete.
        if module == StaticFunction.__module__:
            owner = frame.f_locals.get("self")
            found = owner if isinstance(owner, StaticFunction) else found
        saving = saving or (module == "paddle.jit.api" and frame.f_code.co_name == "save")
        frame = frame.f_back  # type: ignore[assignment]
    if found is None or (saving and not _is_kept(found)):
        return
    _around.setdefault(tower, weakref.WeakSet()).add(found)


def _is_kept(function: Any) -> bool:
    """Whether a layer has the static function as its forward."""
    owner = owner_of(function)
    return owner is not None and vars(owner).get("forward") is function


def owner_of(function: Any) -> Any:
    """The layer whose method a static function is; None of a plain function, ``function`` if it is gone."""
    try:
        return function.class_instance
    except RuntimeError:  # "has been deleted": it can no longer run
        return function


def drop_own(model: nn.Layer) -> None:
    """Have the program of the model itself traced again at its next call."""
    drop(vars(model).get("forward"))


def drop_others(tower: nn.Layer, model: nn.Layer, *, warn: bool) -> None:
    """Have the programs around the model traced again, and say so once for each model if ``warn``."""
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
        f"r was changed after to_static(full_graph=True) had traced {names} with the patched model in it. "
        "Programs that Paddle still holds are traced again at their next call, which takes seconds; a "
        "program that was saved or taken out of them (concrete_program) keeps the old r. Set r before "
        "tracing, or trace the patched model itself.",
        StaleProgramWarning,
        stacklevel=5,
    )


def drop(function: Any) -> bool:
    """Have a static function traced again; whether it held a program."""
    try:
        programs = getattr(function, "program_cache", None)
    except RuntimeError:  # of SOT, which looks each time
        return False
    if programs is None or not len(programs):
        return False
    programs.clear()
    return True


def before_save(layer: Any, input_spec: Any, configs: Any) -> None:
    """Called by ``paddle.jit.save``: what goes to ONNX is traced for it, though it was traced before."""
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
    """Have ``before_save`` called; once, however often this is called."""
    register: Any = getattr(paddle.jit.api, "_register_save_pre_hook", None)  # not public
    if register is not None:
        register(before_save)
