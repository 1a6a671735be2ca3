"""One call of a patched model: what must have happened when it returns.

The tower and the model that was patched have their calls and public methods wrapped (:class:`Watched`). So a
pass that stops before the last block, which hands all tokens back, is an error when the call returns, and
``model.tome`` knows of a pass that raised or that ran no patched block.
"""

from __future__ import annotations

from typing import Any

from tomecore.adapters._config import Config
from tomecore.adapters._passes import TRACED, UNREACHED, Call, Outcome
from tomecore.adapters._swap import Swapped, own
from tomecore.errors import LostStateError, TomeError

__all__ = ["Watched", "check_finished"]


#: what code behind the blocks raises that gets fewer tokens than it counts on
_OF_SHAPES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


class Watched(Swapped):
    """Mixin of the tower and of the model: their calls are followed.

    The public methods of their classes are wrapped too, see ``_swap.watch_methods``.
    """

    _tome: Config
    watches_methods = True

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
    if outer is not None:
        output = function(*args, **kwargs)
        if whole:
            check_finished(config, outer, tracing)
        return output
    call = Call(args, kwargs)
    config.passes.call.set(call, tracing)
    config.passes.open.set(False, tracing)
    config.passes.patches.set(None, tracing)
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
    except BaseException as error:
        failed(config, call, error)
        raise
    finally:
        config.passes.call.set(None, tracing)
    ended(config, call, whole)
    return output


def check_finished(config: Config, call: Call, tracing: bool) -> None:
    """Raise if the pass under way has merged tokens and its last block, which restores them, did not run."""
    run = None if tracing else call.run
    unfinished = run is not None and run.unfinished and config.restore
    if not unfinished and not config.passes.open.get(tracing):
        return
    after = "" if run is None else f" after block {run.blocks - 1} of 0 to {config.num_layers - 1}"
    config.passes.open.set(False, tracing)
    raise LostStateError(
        f"a forward pass of a patched {config.spec.family} stopped{after}, with merged tokens: the last "
        "block of the list, which hands all tokens back, did not run. To read an earlier layer, run the "
        "whole model and take what the block hands on within model.tome.all_tokens(); to run fewer blocks, "
        "shorten the list and call apply_patch again, or set model.r = 0."
    )


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
    known = isinstance(error, TomeError) or not isinstance(error, _OF_SHAPES)
    if run is None or known or call.inside is not None or not (run.unfinished and config.restore):
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
