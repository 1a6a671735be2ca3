"""``model.tome``: what a patched model did in its last forward pass."""

from __future__ import annotations

from tomecore._checks import rank
from tomecore._plan import take_rows
from tomecore.adapters._config import Config
from tomecore.adapters._state import Run
from tomecore.backends import Array, backend_of
from tomecore.errors import ArgumentTypeError, ArgumentValueError, NoForwardError
from tomecore.schedule import R

__all__ = ["Handle"]


class Handle:
    """Settings and results of a patched model.

    Results are those of the last forward pass of the calling thread, without gradients. Asking for
    them when there is none raises :class:`tomecore.errors.NoForwardError`.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    @property
    def r(self) -> R:
        """Tokens merged per layer, as it was set; the same as ``model.r``."""
        return self._config.r

    @r.setter
    def r(self, value: R) -> None:
        self._config.r = value

    @property
    def schedule(self) -> list[int]:
        """Tokens to merge in each layer, before clamping to what is there.

        A schedule object is asked with the token count of the last forward pass.
        """
        config = self._config
        return config.schedule(self._run().num_tokens if callable(config.r) else None)

    @property
    def protected(self) -> int:
        """Tokens at the front that never merge: class, distillation and register tokens."""
        return self._config.protected

    @property
    def prop_attn(self) -> bool:
        """Whether attention counts each token as often as its size says."""
        return self._config.prop_attn

    @property
    def tokens(self) -> list[int]:
        """Tokens after each layer."""
        return list(self._run().tokens)

    @property
    def sizes(self) -> Array:
        """(B, n) float32: how many original tokens each token stands for at the end."""
        run = self._run()
        if run.sizes is not None:
            return run.sizes
        return self._config.host.ones((run.batch, run.width), run.device)

    @property
    def source(self) -> Array:
        """(B, N) int: original token -> slot at the end; needs ``trace_source=True``."""
        if not self._config.trace_source:
            raise NoForwardError(
                "the source map was not kept: call apply_patch(model, trace_source=True), then run "
                "the model"
            )
        return self._source()

    def unmerge(self, x: Array) -> Array:
        """Give every original token the value of the slot that holds it.

        Args:
            x: (B, n, C), one row per slot of the last forward pass.

        Returns:
            (B, N, C).

        Raises:
            ArgumentValueError: another number of tokens or samples than the last forward pass had.
        """
        source, run = self._source(), self._run()
        backend = self._config.host.backend()
        if backend_of(x) is not backend:
            raise ArgumentTypeError(
                f"`x` must be a {backend.name} array, as the model's are; "
                f"got {type(x).__module__}.{type(x).__qualname__}"
            )
        rank(x, "x", "(B, n, C)")
        if tuple(x.shape[:2]) != (source.shape[0], run.width):
            raise ArgumentValueError(
                f"`x` must have shape ({source.shape[0]}, {run.width}, C), the samples and slots of "
                f"the last forward pass; got {tuple(x.shape)}"
            )
        return take_rows(backend, x, source)

    def __repr__(self) -> str:
        config = self._config
        return (
            f"<tome: {config.spec.family}, {len(config.blocks)} layers, r={config.r!r}, "
            f"prop_attn={config.prop_attn}, restore={config.restore}>"
        )

    def _source(self) -> Array:
        run = self._run()
        if run.source is not None:
            return run.source
        xp = self._config.host.backend().xp
        zeros = 0 * self._config.host.ones((run.batch, run.num_tokens), run.device)
        tokens = xp.arange(run.num_tokens, dtype=xp.int64, device=run.device)
        return xp.astype(zeros, xp.int64) + tokens

    def _run(self) -> Run:
        config = self._config
        run: Run | None = config.last_run.get(False)
        if config.ran_traced:
            raise NoForwardError(
                "the last forward pass ran as a compiled or exported graph, which keeps no results; "
                "call the model without compiling to inspect it"
            )
        if run is None:
            raise NoForwardError(
                "this model has no forward pass in this thread since it was patched; run it first"
            )
        return run
