"""Define ``model.tome``: the settings of a patched model, and the results of its last forward pass."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tomecore.adapters.engine.config import Config, Observer
from tomecore.adapters.engine.count import count
from tomecore.adapters.engine.host import PropAttn, check_prop_attn
from tomecore.adapters.engine.reduce import drop_tokens
from tomecore.adapters.engine.state import TokenState
from tomecore.backends import Array, Index, Sizes, Tokens, backend_of
from tomecore.core.checks import rank, whole_number
from tomecore.core.plan import take_rows
from tomecore.errors import ArgumentTypeError, ArgumentValueError, NoForwardError
from tomecore.matching import Matching
from tomecore.schedule import R
from tomecore.schedule.arithmetic import Arithmetic

__all__ = ["PARTS", "Handle"]

#: the parts that ``Handle.timings`` measures; the first includes the next four
PARTS = (
    "all of the merge",
    "match and merge in one go",
    "keys: sum over heads",
    "matching",
    "merging",
    "log of sizes",
    "following tokens",
    "restore",
)

T = TypeVar("T")


class Handle:
    """Settings and results of a patched model.

    Results describe the last forward pass of the calling thread, without gradients. If there are none,
    reading them raises :class:`tomecore.errors.NoForwardError` with the reason: the model has not run, the
    last pass raised or ran as a compiled graph, it did not reach the patched blocks, or blocks that were
    called one by one stopped before the last.
    """

    def __init__(self, config: Config, model: Any) -> None:
        self._config = config
        self._model = model

    @property
    def r(self) -> R:
        """Tokens merged per layer, in the form in which it was set; the same as ``model.r``."""
        return self._config.r

    @r.setter
    def r(self, value: R) -> None:
        self.check_schedule(value)
        self._config.r = value
        self._config.host.drop_traces(self._model)

    def check_schedule(self, r: R) -> None:
        """Call ``check_model(handle)`` of a schedule object that has it, which raises for another model."""
        check = getattr(r, "check_model", None)
        if callable(check):
            check(self)

    @property
    def family(self) -> str:
        """Name of the family of blocks, as in the table of supported models."""
        return self._config.spec.family

    @property
    def schedule(self) -> list[int]:
        """Tokens to merge in each layer, before clamping.

        A schedule object is called with the token count of the last forward pass.
        """
        config = self._config
        return config.schedule(self._run().num_tokens if callable(config.r) else None)

    @property
    def protected(self) -> int:
        """Number of prefix tokens, which never merge: as passed, or as many as the family knows."""
        return self._config.protected

    @property
    def matching(self) -> str | Matching:
        """Which tokens merge: the name or the function that ``apply_patch`` got; "tome" by default."""
        return self._config.method.chosen

    @property
    def prop_attn(self) -> PropAttn:
        """Whether attention counts each token as often as its size; "column": as a column of the keys."""
        return self._config.prop_attn

    @property
    def trim_last(self) -> bool:
        """Whether the last block computes only the prefix tokens."""
        return self._config.trim_last

    @property
    def restore(self) -> bool:
        """Whether the last block returns all N tokens."""
        return self._config.restore

    @property
    def blocks(self) -> list[Any]:
        """The patched blocks, in order."""
        return self._config.blocks

    @property
    def layers(self) -> str:
        """Name of the list of blocks in its module, such as ``"blocks"``."""
        return self._config.layers

    @property
    def token_axis(self) -> int:
        """Axis of the tokens in the input and output of a block: 1, or 0 if the batch comes second."""
        return self._config.token_axis

    @property
    def num_tokens(self) -> int:
        """N: tokens that entered the first block in the last forward pass, prefix tokens included."""
        return self._run().num_tokens

    @property
    def arithmetic(self) -> Arithmetic:
        """The model's multiply-adds for any r, e.g. ``model.tome.arithmetic.limit(197, 16)``.

        It needs no forward pass. See :func:`tomecore.schedule.arithmetic.arithmetic_of`.
        """
        return count(self._config, self._model)

    @property
    def tokens(self) -> list[int]:
        """Tokens after each layer.

        With ``trim_last`` the last layer merges nothing: its tokens are those it attends to, and it returns
        the first ``protected`` of them. ``sizes``, ``source`` and ``unmerge`` refer to the same tokens.
        """
        return list(self._run().tokens)

    @property
    def sizes(self) -> Sizes:
        """(B, n) float32: the weight in attention of each token after the last block.

        It is the number of original tokens in it, unless a matching weights sizes or drops tokens; see
        :attr:`counts`.
        """
        state = self._run()
        if state.sizes is not None:
            return state.sizes
        return self._config.host.ones((state.info.batch, state.width), state.info.device)

    @property
    def counts(self) -> Sizes:
        """(B, n) int: the number of original tokens in each token after the last block.

        Padding counts, and so do dropped tokens, in the token that takes their place: counts sum to N.
        """
        source, state = self._source(), self._run()
        backend = self._config.host.backend()
        ones = self._config.host.ones((state.info.batch, state.num_tokens), state.info.device)
        zeros = 0 * self._config.host.ones((state.info.batch, state.width), state.info.device)
        return backend.xp.astype(backend.add_sizes(zeros, source, ones), backend.xp.int64)

    @property
    def source(self) -> Index:
        """(B, N) int: original token -> slot after the last block; needs ``trace_source=True``."""
        if not self._config.trace_source:
            raise NoForwardError(
                "the source map was not kept: call apply_patch(model, trace_source=True), then run the model"
            )
        return self._source()

    def unmerge(self, x: Tokens) -> Tokens:
        """Return, for every original token, the value of the slot that holds it.

        Args:
            x: (B, n, C), one row per slot of the last forward pass.

        Returns:
            (B, N, C).

        Raises:
            ArgumentTypeError: ``x`` comes from another library than the model's arrays.
            ArgumentValueError: the numbers of samples and tokens are not those of the last forward pass.
        """
        source, state = self._source(), self._run()
        backend = self._config.host.backend()
        if backend_of(x) is not backend:
            raise ArgumentTypeError(
                f"`x` must be a {backend.name} array, as the model's are; "
                f"got {type(x).__module__}.{type(x).__qualname__}"
            )
        rank(x, "x", "(B, n, C)")
        if tuple(x.shape[:2]) != (source.shape[0], state.width):
            raise ArgumentValueError(
                f"`x` must have shape ({source.shape[0]}, {state.width}, C), the samples and slots of "
                f"the last forward pass; got {tuple(x.shape)}{self._trim_remark(x)}"
            )
        return take_rows(backend, x, source)

    @contextmanager
    def all_tokens(self) -> Iterator[None]:
        """Within this context every block returns all N tokens, each at its original position.

        This is for hooks on blocks and other readers of intermediate layers. Tokens still merge, so the model
        stays as fast, except for two gathers per block, and its output is the same. The context applies to
        the calling thread only.

        Modules *inside* a block still get merged tokens: a hook on ``blocks[-1].norm1``, which Grad-CAM uses,
        receives fewer of them, and :class:`tomecore.errors.InnerHookWarning` reports it. Hook the block
        itself, or set ``model.r = 0`` for such a pass.
        """
        config = self._config
        tracing = config.host.tracing()
        keep_all, user = config.dense.enter(tracing), config.dense_by_user.enter(tracing)
        try:
            yield
        finally:
            config.dense.leave(keep_all, tracing)
            config.dense_by_user.leave(user, tracing)

    def grid(self, x: Tokens, size: tuple[int, int] | None = None) -> Array:
        """Arrange tokens as the image that they came from, for dense prediction.

        Args:
            x: (B, n, C) slots or (B, N, C) tokens of the last forward pass, prefix tokens included.
            size: (height, width) of the grid in patches; None: square.

        Returns:
            (B, C, height, width), without the prefix tokens; merged patches share their values.

        Raises:
            ArgumentValueError: ``x`` does not have the shape of the last forward pass, or ``size`` does not
                match its number of patches.
        """
        state = self._run()
        rank(x, "x", "(B, n, C)")
        if x.shape[1] != state.num_tokens:
            x = self.unmerge(x)
        patches = state.num_tokens - self.protected
        if size is None:
            side = math.isqrt(patches)
            size = (side, side)
        height, width = (whole_number(n, "size", unit="patches") for n in size)
        if height * width != patches:
            raise ArgumentValueError(
                f"`size` must be (height, width) with height * width = {patches}, the patches of the "
                f"last forward pass; got {height} x {width}"
            )
        xp = self._config.host.backend().xp
        rows = xp.reshape(x[:, self.protected :], (-1, height, width, x.shape[2]))
        return xp.permute_dims(rows, (0, 3, 1, 2))

    @contextmanager
    def watch(self, observer: Observer) -> Iterator[None]:
        """Within this context ``observer`` is called with every merge, in order.

        Compiled and exported graphs do not call observers. No other thread may use the model meanwhile.

        Args:
            observer: called with (layer, key, plan, sizes, x): the number of the block, from 0; the keys
                (B, N, D) by which its tokens were compared; the :class:`tomecore.MergePlan`; the sizes (B, n)
                and the tokens (B, n, C) after the merge.
        """
        config = self._config
        config.observers = (*config.observers, observer)
        try:
            yield
        finally:
            left = list(config.observers)
            left.remove(observer)
            config.observers = tuple(left)

    @contextmanager
    def timings(self, wait: Callable[[], Any] | None = None) -> Iterator[dict[str, float]]:
        """Measure the time of each part of merging within this context, for profiles.

        Compiled and exported graphs are not timed. No other thread may use the model meanwhile.

        Args:
            wait: function that waits for the device; called before the clock is read. None: do not wait.

        Yields:
            Seconds by name of the part, summed over layers and calls; "all of the merge" includes the
            parts from keys to merged tokens. Remapping positions (rotary tables) is not a part: it happens
            when a block's arguments are converted.
        """
        config = self._config
        before, seconds = config.call_part, dict.fromkeys(PARTS, 0.0)

        def clock(name: str, function: Callable[..., T], *args: Any) -> T:
            if wait is not None:
                wait()
            start = time.perf_counter()
            found = function(*args)
            if wait is not None:
                wait()
            seconds[name] += time.perf_counter() - start
            return found

        config.call_part = clock
        try:
            yield seconds
        finally:
            config.call_part = before

    @contextmanager
    def with_prop_attn(self, prop_attn: PropAttn) -> Iterator[None]:
        """Set proportional attention to ``prop_attn`` within this context, for comparisons.

        No other thread may use the model meanwhile.
        """
        config = self._config
        check_prop_attn(config.host, prop_attn)
        before, config.prop_attn = config.prop_attn, prop_attn
        try:
            yield
        finally:
            config.prop_attn = before

    @contextmanager
    def without_restoring(self) -> Iterator[None]:
        """Leave tokens merged after the last block within this context, as ``restore=False`` does.

        Whether something reads all tokens is checked in the forward pass, which then raises. No other thread
        may use the model meanwhile.
        """
        config = self._config
        before, config.restore = config.restore, False
        try:
            yield
        finally:
            config.restore = before

    def free_drop(self) -> None:
        """Turn the model into the free-drop baseline: its blocks drop r tokens instead of merging them.

        It shows what the machine gains from fewer tokens: a slice replaces matching, merging and the bias.
        Only the time is meaningful, not the output. Call ``apply_patch`` to merge again.
        """
        self._config.reduce, self._config.restore = drop_tokens, False

    def __repr__(self) -> str:
        config = self._config
        return (
            f"<tome: {config.spec.family}, {len(config.blocks)} layers, r={config.r!r}, "
            f"{'' if config.method.is_tome else f'{config.method}, '}"
            f"prop_attn={config.prop_attn}, restore={config.restore}"
            f"{', trim_last=True' if config.trim_last else ''}>"
        )

    def _trim_remark(self, x: Tokens) -> str:
        """Explain, for a message, why ``x`` may have too few tokens."""
        if not self.trim_last or x.shape[1] != self.protected:
            return ""
        return (
            ". With trim_last=True the last block computes only these: call apply_patch(model) again without "
            "it, or run the model within model.tome.all_tokens()"
        )

    def _source(self) -> Index:
        state = self._run()
        if state.source is not None:
            return state.source
        xp = self._config.host.backend().xp
        zeros = 0 * self._config.host.ones((state.info.batch, state.num_tokens), state.info.device)
        tokens = xp.arange(state.num_tokens, dtype=xp.int64, device=state.info.device)
        return xp.astype(zeros, xp.int64) + tokens

    def _run(self) -> TokenState:
        config = self._config
        outcome = config.passes.outcome.get(False)
        if outcome is None:
            raise NoForwardError(
                "this model has had no forward pass in this thread since it was patched; run it first"
            )
        state: TokenState | None = outcome.state
        if state is None:
            raise NoForwardError(outcome.problem)
        if state.blocks < config.num_layers and not outcome.returned:
            raise NoForwardError(
                f"the last forward pass, of blocks called one by one, stopped after block {state.blocks - 1} "
                f"(of 0 to {config.num_layers - 1}) with {state.width} of {state.num_tokens} tokens; run the "
                "remaining blocks to get results"
            )
        return state
