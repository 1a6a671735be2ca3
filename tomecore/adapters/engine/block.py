"""Run the forward of a block that merges, for every framework and family.

It is a mixin that comes before the block's own class, so ``super().forward`` is the original. If nothing
merges and nothing has merged before, the original runs: r=0 is exact by construction.
The code has no lambdas, no generators and no early batch sizes, because static graphs convert this source.
The arguments of ``super`` are written out, because Paddle takes a bare ``super()`` for
``super(type(self), self)``, which would call this mixin again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tomecore.adapters.engine.checks import check_children, check_halves, contract_of, where
from tomecore.adapters.engine.config import Config
from tomecore.adapters.engine.context import AttentionInput
from tomecore.adapters.engine.progress import (
    begin,
    check_symbolic,
    check_unreached,
    note,
    reach,
    resume,
)
from tomecore.adapters.engine.schedules import clamp, trims
from tomecore.adapters.engine.spec import Kwargs
from tomecore.adapters.engine.state import TokenState
from tomecore.adapters.engine.swap import Swapped, own_method
from tomecore.backends import Array, Bias, Index, Tokens
from tomecore.core.plan import take_rows
from tomecore.errors import UnsupportedModelError

__all__ = ["Merging"]


class Merging(Swapped):
    """Mixin of a patched block; ``_tome`` in its ``__dict__`` is the model's Config.

    ``_tome_index`` is the block's index in the list. Compiled code must not read it, because it would be
    compiled again for each block; it reads ``_tome_first`` and ``_tome_last`` instead.
    """

    _tome: Config
    _tome_index: int
    _tome_first: bool
    _tome_last: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the block, and check that its patched forward ran."""
        if "_tome" not in self.__dict__:
            return own_method(Merging, self, "__call__")(*args, **kwargs)
        config = self._tome
        config.host.run_as_is(True)
        tracing = config.host.tracing()
        config.passes.reached.set(False, tracing)
        call = None if tracing else config.passes.call.get(False)
        if call is not None:
            call.inside = self._tome_index
        called = super(Merging, self).__call__  # type: ignore[misc] # noqa: UP008
        if tracing or "forward" not in self.__dict__:
            output = called(*args, **kwargs)
        else:
            output = with_own_forward(config, self, called, args, kwargs)
        if not config.passes.reached.get(tracing):
            check_unreached(config, self, (*args, *kwargs.values()), tracing)
        if call is not None:
            call.inside = None
        return output

    def forward(self, x: Tokens, *args: Any, **kwargs: Any) -> Any:
        """Compute the block, merging tokens between its halves."""
        if "_tome" not in self.__dict__:
            return own_method(Merging, self, "forward")(x, *args, **kwargs)
        config = self._tome
        host, spec = config.host, config.spec
        host.run_as_is(True)
        tracing = host.tracing()
        reach(config, tracing)
        if host.symbolic(x) or not hasattr(x, "shape"):
            check_symbolic(config, x)
            return super(Merging, self).forward(x, *args, **kwargs)  # type: ignore[misc] # noqa: UP008
        index, last = -1 if tracing else self._tome_index, self._tome_last
        state = begin(config, x, tracing) if self._tome_first else resume(config, x, tracing, index)
        if state is None:  # nothing has merged: a block called by itself, with r = 0 everywhere
            return super(Merging, self).forward(x, *args, **kwargs)  # type: ignore[misc] # noqa: UP008
        if trims(config, state, last):
            return run_trimmed(config, self, x, args, kwargs, state, tracing)
        r = clamp(config, state)
        if r == 0 and state.history is None:
            y = super(Merging, self).forward(x, *args, **kwargs)  # type: ignore[misc] # noqa: UP008
            return attach_state(config, y, state.after(state.width), tracing, last)
        backend = host.backend()
        if config.token_axis == 0:
            x = backend.xp.permute_dims(x, (1, 0, 2))
        block_kwargs: Kwargs = {}
        if args or kwargs or spec.carry is not None:
            block_kwargs, state = arguments(config, self, args, kwargs, state, x)
        if state.keep_all and state.representatives is not None:
            x = take_rows(backend, x, state.representatives)
        bias = config.call_part("log of sizes", key_bias, config, state, x)
        check_halves(config, self, biased=bias is not None)
        if not tracing:
            check_children(config, self, x, state.width - r)
        entered = None if config.method.is_tome else AttentionInput(x, bias, block_kwargs)
        x, keys = attend(config, self, x, bias, block_kwargs, tracing)
        if r > 0:
            x, state = config.call_part(
                "all of the merge", config.reduce, config, self, x, keys, state, r, entered
            )
        keys = []  # frees a view of all queries, keys and values, which the MLP half does not need
        entered = None
        if spec.feed is not None:
            x = spec.feed(self, x)
        state = state.after(state.width - r)
        if state.history is not None and (state.keep_all or (last and config.restore)):
            source = config.call_part("following tokens", source_of, state)
            x = config.call_part("restore", take_rows, backend, x, source)
        if config.token_axis == 0:
            x = backend.xp.permute_dims(x, (1, 0, 2))
        x = attach_state(config, x, state, tracing, last)
        return (x,) if spec.returns_tuple else x


def source_of(state: TokenState) -> Index | None:
    """Return (B, N0) int, original token -> slot."""
    return state.source


def with_own_forward(
    config: Config,
    block: Any,
    called: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call a block whose instance has its own forward; it may fail because of merged tokens."""
    try:
        return called(*args, **kwargs)
    except Exception as error:
        if not config.passes.reached.get(False):
            check_unreached(config, block, (*args, *kwargs.values()), False, error)
        raise


def run_trimmed(
    config: Config,
    block: Any,
    x: Tokens,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    state: TokenState,
    tracing: bool,
) -> Any:
    """Run the last block with ``trim_last``: it computes only the prefix tokens, and merges nothing."""
    host, spec = config.host, config.spec
    check_halves(config, block, biased=state.sizes is not None, trimmed=True)
    xp = host.backend().xp
    if config.token_axis == 0:
        x = xp.permute_dims(x, (1, 0, 2))
    block_kwargs: Kwargs = {}
    if args or kwargs or spec.carry is not None:
        block_kwargs, state = arguments(config, block, args, kwargs, state, x)
    bias = key_bias(config, state, x)
    x = spec.trim.attend(host, block, x, bias, block_kwargs, config.protected)  # type: ignore[union-attr]
    x = x[0] if isinstance(x, tuple) else x  # the rest is the key, and nothing merges
    if spec.feed is not None:
        x = spec.feed(block, x)
    if config.token_axis == 0:
        x = xp.permute_dims(x, (1, 0, 2))
    x = attach_state(config, x, state.after(state.width), tracing, True)
    return (x,) if spec.returns_tuple else x


def attend(
    config: Config,
    block: Any,
    x: Tokens,
    bias: Bias | None,
    block_kwargs: Kwargs,
    tracing: bool,
) -> tuple[Tokens, list[Array]]:
    """Run the attention half; returns its output, and the keys that it computed."""
    spec, captured_keys = config.spec, config.host.captured_keys
    if not spec.key:
        x, key = spec.attend(config.host, block, x, bias, block_kwargs)
        return x, [key]
    watched = None if bias is None else watch_bias(config, block, bias, tracing)
    captured: list[tuple[Any, Array]] = []
    captured_keys.set(captured, tracing)
    try:
        if watched is None and (tracing or contract_of(config).called_otherwise(block) is None):
            x = spec.attend(config.host, block, x, bias, block_kwargs)
        else:
            x = attend_otherwise(config, block, x, watched or (bias, always), block_kwargs)
    finally:
        captured_keys.set(None, tracing)
    check_keys(config, block, captured)
    return x, [key for _, key in captured]


def watch_bias(
    config: Config, block: Any, bias: Bias, tracing: bool
) -> tuple[Bias, Callable[[], bool]] | None:
    """Return the bias and a function that reports its use, if the attention was changed after the patch.

    None if the attention is unchanged.
    """
    path = contract_of(config).called_otherwise(block)
    if path is None:
        return None
    found = None if tracing else config.host.watch_bias(bias)
    if found is None:
        raise UnsupportedModelError(
            f"{path} in {where(config, block)} got another forward after apply_patch. While a graph is "
            "traced, tomecore cannot check whether that forward adds the sizes of merged tokens to its "
            "scores. Undo the change, or set model.r = 0 for tracing."
        )
    return found


def always() -> bool:
    return True


def attend_otherwise(
    config: Config,
    block: Any,
    x: Tokens,
    watched: tuple[Bias | None, Callable[[], bool]],
    block_kwargs: Kwargs,
) -> Tokens:
    """Run the attention half with an attention whose forward was changed after ``apply_patch``.

    Raises:
        UnsupportedModelError: the attention takes no bias, or ignores it.
    """
    bias, used = watched
    reason = "ignores the mask that holds the sizes of merged tokens"
    cause: Exception | None = None
    try:
        x = config.spec.attend(config.host, block, x, bias, block_kwargs)
    except TypeError as error:
        reason, cause = f"cannot be called with the sizes of merged tokens ({error})", error
    if cause is None and used():
        return x
    path = contract_of(config).called_otherwise(block)
    raise UnsupportedModelError(
        f"{path} in {where(config, block)} got another forward after apply_patch, which {reason}. Undo the "
        "change, add the mask to the attention scores there, patch with prop_attn=False, or set model.r = 0."
    ) from cause


def check_keys(config: Config, block: Any, captured: list[tuple[Any, Array]]) -> None:
    """Raise unless the attention called each module whose output is a key exactly once."""
    spec, contract = config.spec, contract_of(config)
    modules = contract.modules_at(block, contract.key) or []
    same = len(captured) == len(modules)
    for index, (module, _) in enumerate(captured):
        same = same and module is modules[index]
    if not same:
        raise UnsupportedModelError(
            f"a block of {spec.family} attended without calling {spec.key!r} as it was at apply_patch; "
            "tokens are matched by its output, the keys. That module or the attention was replaced after "
            "apply_patch: call remove_patch, then apply_patch again."
        )


def key_bias(config: Config, state: TokenState, x: Tokens) -> Bias | None:
    """Return (B, 1, 1, n), the log size that is added to the scores of each key; -inf for padding."""
    if state.sizes is None or (state.valid is None and not config.prop_attn):
        return None
    bias = state.bias if config.prop_attn else None
    if bias is None or bias.dtype != config.host.bias_dtype(x):
        sizes = state.sizes
        if not config.prop_attn:
            xp = config.host.backend().xp
            sizes = xp.astype(sizes > 0, xp.float32)
        bias = config.host.log_sizes(sizes, x)
    # For a sample that is all padding the fused kernel returns zeros, and a softmax NaN.
    return (
        bias
        if state.valid is not None
        else config.host.with_prop_attn_form(bias, x, config.prop_attn)
    )


def attach_state(config: Config, x: Tokens, state: TokenState, tracing: bool, last: bool) -> Tokens:
    """Attach the state to ``x`` for the next block, and record it for ``model.tome``.

    If the block returned a tuple (e.g. with attention maps), the state is attached to its first element.
    """
    note(config, state, tracing, last)
    if not last:
        config.host.write(config, x[0] if isinstance(x, tuple) else x, state, tracing)
    return x


def arguments(
    config: Config,
    block: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    state: TokenState,
    x: Tokens,
) -> tuple[Kwargs, TokenState]:
    """Convert the block's arguments besides x to the merged tokens; raise if one is not supported."""
    spec = config.spec
    named = dict(zip(spec.arguments, args))  # noqa: B905 (Paddle's static graphs know no strict=)
    named.update(kwargs)
    block_kwargs = {}
    for name, value in named.items():
        if value is not None and value is not spec.accepts.get(name):
            block_kwargs[name] = value
    mask = block_kwargs.pop(spec.mask, None)
    if mask is not None and state.history is None:
        xp = config.host.backend().xp
        ones = xp.astype(xp.ones_like(x[:, :, 0]), xp.float32)
        state = state.with_padding(ones * xp.astype(spec.real_tokens(mask), xp.float32))
    if mask is not None and state.valid is None:
        unknown = [f"{spec.mask}=, which earlier blocks did not get"]
    else:
        unknown = [f"a positional {type(a).__name__}" for a in args[len(spec.arguments) :]]
        known = () if spec.carry is None else spec.arguments
        unknown += [f"{name}=" for name in block_kwargs if name not in known]
    if unknown:
        raise UnsupportedModelError(
            f"a patched block of {spec.family} was called with {', '.join(unknown)}, which describes all "
            "tokens, but merging leaves fewer. Call the model without it, or set model.r = 0 (without "
            "trim_last) for such calls."
        )
    # Even before the first merge, so that unsupported arguments are refused at once.
    if spec.carry is not None:
        block_kwargs = spec.carry(config.host, block, block_kwargs, state)
    return block_kwargs, state
