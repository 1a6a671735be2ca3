"""Follow each call of a patched model, and check at its end that all tokens were restored.

The calls and the public methods of the tower and of the patched model are wrapped (:class:`Watched`). So a
pass that stops before the last block, which restores all tokens, raises when the call returns, and
``model.tome`` can report a pass that raised or that ran no patched block.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

from tomecore.adapters.engine.config import Config
from tomecore.adapters.engine.passes import TRACED, UNREACHED, Call, Outcome
from tomecore.adapters.engine.swap import Swapped, own_method
from tomecore.errors import LostStateError, TomeError

__all__ = ["Watched", "check_finished"]


#: errors that code after the blocks raises if it gets fewer tokens than it expects
_OF_SHAPES = (RuntimeError, ValueError, IndexError, AssertionError)


_STOPPED = (
    "a forward pass of a patched {family} stopped{after}, with merged tokens: the last block of the list, "
    "which restores all tokens, did not run. To read an earlier layer, run the whole model within "
    "model.tome.all_tokens() and read the output of the block; to run fewer blocks, shorten the list and "
    "call apply_patch again, or set model.r = 0."
)


class Watched(Swapped):
    """Mixin of the tower and of the model that follows their calls.

    The public methods of their classes are wrapped too, see ``swap.watch_methods``.
    """

    _tome: Config
    watches_methods = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Skip the model's own ``__init_subclass__``, which might register the new class by name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module, and check at the end of a pass that no token is still merged."""
        if "_tome" not in self.__dict__:
            return own_method(Watched, self, "__call__")(*args, **kwargs)
        return run_call(self._tome, super().__call__, args, kwargs, True)  # type: ignore[misc]

    def _tome_within(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run a public method of the class within a call; ``function`` is bound."""
        if "_tome" not in self.__dict__:
            return function(*args, **kwargs)
        return run_call(self._tome, function, args, kwargs, False)


def run_call(
    config: Config,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    whole: bool,
) -> Any:
    """Run a method of the tower or the model; ``whole``: whether it is ``__call__``.

    Raises:
        LostStateError: it returned merged tokens, because the last block did not run.
    """
    config.host.run_as_is(False)
    tracing = config.host.tracing()
    outer = config.passes.call.get(tracing)
    if tracing:
        function = config.host.convert_for_graph(function)
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
        note_failure(config, call, error)
        raise
    finally:
        config.passes.call.set(None, tracing)
    note_end(config, call, whole)
    return output


def check_finished(config: Config, call: Call, tracing: bool, before: Collection[int] = ()) -> None:
    """Raise if tokens have merged and the last block, which restores them, did not run.

    Args:
        config: the config of the model.
        call: the current call.
        tracing: whether a graph is being traced.
        before: passes that were open already when this part of the call started.
    """
    if not tracing and config.passes.closed.get(
        False
    ):  # blocks were compiled, including the last one
        call.open.clear()
    left = [state for info, state in call.open.items() if info not in before]
    if not (left and config.restore) and not config.passes.open.get(tracing):
        return
    after = f" after block {left[-1].blocks - 1} of 0 to {config.num_layers - 1}" if left else ""
    config.passes.open.set(False, tracing)
    raise LostStateError(_STOPPED.format(family=config.spec.family, after=after))


def check_output(config: Config, output: Any) -> None:
    """Raise if the output holds an array that an inner block returned, with merged tokens."""
    host, axis = config.host, config.token_axis
    for array in arrays_in(output, host.array_class):
        if len(array.shape) != 3:
            continue
        state = host.read(config, array, False)
        if state is None or not (state.unfinished and config.restore):
            continue
        if state.fits(array.shape[1 - axis], array.shape[axis], False):
            after = f" after block {state.blocks - 1} in one of its outputs"
            raise LostStateError(_STOPPED.format(family=config.spec.family, after=after))


def arrays_in(output: Any, array_class: type, depth: int = 3) -> Iterator[Any]:
    """Yield the arrays in an output, and in lists, tuples and dictionaries in it, ``depth`` deep."""
    if isinstance(output, array_class):
        yield output
    elif depth and isinstance(output, list | tuple | dict):
        for inner in output.values() if isinstance(output, dict) else output:
            yield from arrays_in(inner, array_class, depth - 1)


def note_failure(config: Config, call: Call, error: BaseException) -> None:
    """Record for ``model.tome`` that a pass raised; raise LostStateError if merged tokens caused it."""
    if config.host.recomputing():  # checkpoints may end a recomputation by an exception
        return
    state = call.state
    blocks = 0 if state is None else state.blocks
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


def note_end(config: Config, call: Call, whole: bool) -> None:
    """Record for ``model.tome`` that a call has returned."""
    outcome = config.passes.outcome.get(False)
    if call.state is None:
        if whole and outcome is not TRACED and not config.host.recomputing():
            config.passes.outcome.set(UNREACHED, False)
    elif outcome is not None and outcome.state is call.state:
        outcome.returned = True
