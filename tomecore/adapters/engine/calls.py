"""One call of a patched model: what must have happened when it returns.

The tower and the model that was patched have their calls and public methods wrapped (:class:`Watched`). So a
pass that stops before the last block, which hands all tokens back, is an error when the call returns, and
``model.tome`` knows of a pass that raised or that ran no patched block.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tomecore.adapters.engine.config import Config
from tomecore.adapters.engine.passes import TRACED, UNREACHED, Call, Outcome
from tomecore.adapters.engine.swap import Swapped, own
from tomecore.errors import LostStateError, TomeError

__all__ = ["Watched", "check_finished"]


#: what code behind the blocks raises that gets fewer tokens than it counts on
_OF_SHAPES = (RuntimeError, ValueError, IndexError, AssertionError)


_STOPPED = (
    "a forward pass of a patched {family} stopped{after}, with merged tokens: the last block of the list, "
    "which "
    "hands all tokens back, did not run. To read an earlier layer, run the whole model and take what the "
    "block "
    "hands on within model.tome.all_tokens(); to run fewer blocks, shorten the list and call apply_patch "
    "again, "
    "or set model.r = 0."
)


class Watched(Swapped):
    """Mixin of the tower and of the model: their calls are followed.

    The public methods of their classes are wrapped too, see ``_swap.watch_methods``.
    """

    _tome: Config
    watches_methods = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Nothing of what a model does for its subclasses: it might enter them into a list by name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if "_tome" not in self.__dict__:
            return own(Watched, self, "__call__")(*args, **kwargs)
        return within(self._tome, super().__call__, args, kwargs, True)  # type: ignore[misc]

    def _tome_within(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a public method of the class; ``function`` is bound."""
        if "_tome" not in self.__dict__:
            return function(*args, **kwargs)
        return within(self._tome, function, args, kwargs, False)


def within(config: Config, function: Any, args: tuple[Any, ...], kwargs: Any, whole: bool) -> Any:
    """Run a method of the tower or the model; ``whole``: its ``__call__``.

    Raises:
        LostStateError: merged tokens came out of it, because the last block did not run.
    """
    config.host.run_as_is(False)
    tracing = config.host.tracing()
    outer = config.passes.call.get(tracing)
    if tracing:
        function = config.host.converted(function)
    if outer is not None:
        begun = set(outer.open)
        output = function(*args, **kwargs)
        if whole:
            check_finished(config, outer, tracing, begun)
        return output
    call = Call(args, kwargs)
    config.passes.call.set(call, tracing)
    config.passes.open.set(False, tracing)
    config.passes.patches.set(None, tracing)
    config.passes.closed.set(False, tracing)
    if tracing:
        try:
            output = function(*args, **kwargs)
            check_finished(config, call, tracing)
        finally:
            config.passes.call.set(None, tracing)
        return output
    try:
        output = function(*args, **kwargs)
        check_finished(config, call, tracing)
        check_output(config, output)
    except BaseException as error:
        failed(config, call, error)
        raise
    finally:
        config.passes.call.set(None, tracing)
    ended(config, call, whole)
    return output


def check_finished(config: Config, call: Call, tracing: bool, before: Collection[int] = ()) -> None:
    """Raise if a pass has merged tokens and its last block, which restores them, did not run.

    Args:
        config: of the model.
        call: the call under way.
        tracing: whether a graph is built.
        before: passes that were open when this part of the call began.
    """
    if not tracing and config.passes.closed.get(False):  # blocks were compiled, the last among them
        call.open.clear()
    left = [run for entry, run in call.open.items() if entry not in before]
    if not (left and config.restore) and not config.passes.open.get(tracing):
        return
    after = f" after block {left[-1].blocks - 1} of 0 to {config.num_layers - 1}" if left else ""
    config.passes.open.set(False, tracing)
    raise LostStateError(_STOPPED.format(family=config.spec.family, after=after))


def check_output(config: Config, output: Any) -> None:
    """Raise if arrays come out that an inner block handed on, with merged tokens in them."""
    host, axis = config.host, config.token_axis
    several = output.values() if isinstance(output, dict) else output
    for array in several if isinstance(output, list | tuple | dict) else (output,):
        if not isinstance(array, host.array_class) or len(array.shape) != 3:  # type: ignore[attr-defined]
            continue
        run = host.read(config, array, False)
        if run is None or not (run.unfinished and config.restore):
            continue
        if run.fits(array.shape[1 - axis], array.shape[axis], False):  # type: ignore[attr-defined]
            after = f" after block {run.blocks - 1} in one of its outputs"
            raise LostStateError(_STOPPED.format(family=config.spec.family, after=after))


def failed(config: Config, call: Call, error: BaseException) -> None:
    """Note for ``model.tome`` that a forward pass raised; say so if merged tokens were the reason."""
    if config.host.recomputing():  # checkpoints end a recomputation by an error
        return
    run = call.run
    blocks = 0 if run is None else run.blocks
    where = f"after {blocks} blocks" if call.inside is None else f"in block {call.inside}"
    problem = (
        f"the last forward pass raised {type(error).__name__} {where} (of {config.num_layers}), so there are "
        "no results; run the model again"
    )
    config.passes.outcome.set(Outcome(None, problem), False)
    known = isinstance(error, TomeError) or type(error) not in _OF_SHAPES
    if known or call.inside is not None or not (call.open and config.restore):
        return
    try:
        check_finished(config, call, False)
    except LostStateError as lost:
        raise lost from error


def ended(config: Config, call: Call, whole: bool) -> None:
    """Note for ``model.tome`` that a call has returned."""
    outcome = config.passes.outcome.get(False)
    if call.run is None:
        if whole and outcome is not TRACED and not config.host.recomputing():
            config.passes.outcome.set(UNREACHED, False)
    elif outcome is not None and outcome.run is call.run:
        outcome.returned = True
