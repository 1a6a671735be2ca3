"""One cell of a benchmark: a model at one r and batch size, with the unpatched model and both limits."""

from __future__ import annotations

import copy
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tomecore.adapters import PropAttn, handle_of
from tomecore.benchmark._forms import free_drop
from tomecore.benchmark._place import Place, peak_bytes, place_of
from tomecore.benchmark._timing import interleave, median_ratio, quartiles
from tomecore.frameworks import logits_of
from tomecore.loading import Loaded, adapter_of
from tomecore.matching import Matching, name_of
from tomecore.schedule import R, as_data
from tomecore.schedule.arithmetic import arithmetic_of

__all__ = ["Measurement", "measure"]


@dataclass(frozen=True)
class Measurement:
    """The numbers of one interleaved run.

    Args:
        model: name of the model.
        framework: "torch" or "paddle".
        r: the schedule.
        batch: images per forward pass.
        image: (height, width) in pixels.
        tokens: tokens that enter the first block.
        tokens_left: tokens left after the last block.
        dtype: dtype of weights and images.
        device: the device it ran on.
        mode: eager, compile, cudagraphs or to_static.
        train: whether forward and backward were timed, or forward only.
        images_per_second: speed of each form, in the median round.
        speedup: merging over unpatched, the median of the rounds.
        speedup_quartiles: first and third quartile of ``speedup``.
        limit: speedup that the arithmetic allows; in training it is the same ratio.
        limit_share: speedup over limit.
        drop_speedup: speedup of dropping the tokens instead of merging them: what the machine can reach.
        drop_share: time of dropping over time of merging.
        drop_share_quartiles: first and third quartile of ``drop_share``.
        merge_share: share of a merging forward pass that matching and merging take; None if a clock
            cannot measure it (GPUs, compiled models, training).
        peak_bytes: memory that one call takes beyond weights and images, by form; None if unknown.
        rounds: number of rounds.
        trim_last: whether the last block computes only the prefix tokens.
        prop_attn: whether attention counts sizes, or in which form.
        matching: which tokens merge.
        ahead: speed of merging over that of each further form, the median of the rounds.
    """

    model: str
    framework: str
    r: R
    batch: int
    image: tuple[int, int]
    tokens: int
    tokens_left: int
    dtype: str
    device: str
    mode: str
    train: bool
    images_per_second: dict[str, float]
    speedup: float
    speedup_quartiles: tuple[float, float]
    limit: float
    limit_share: float
    drop_speedup: float
    drop_share: float
    drop_share_quartiles: tuple[float, float]
    merge_share: float | None
    peak_bytes: dict[str, int | None]
    rounds: int
    trim_last: bool = False
    prop_attn: PropAttn = True
    matching: str = "tome"
    ahead: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON."""
        return {**asdict(self), "r": as_data(self.r)}


def measure(
    loaded: Loaded,
    r: R,
    *,
    batch: int = 8,
    dtype: str = "float32",
    device: str = "cpu",
    mode: str = "eager",
    train: bool = False,
    rounds: int = 9,
    repeat: int = 1,
    trim_last: bool = False,
    prop_attn: PropAttn | None = None,
    matching: str | Matching = "tome",
    others: Mapping[str, Callable[[Any], Any]] | None = None,
) -> Measurement:
    """Time a model in three forms, in turn: unpatched, merging tokens, and dropping them (free-drop).

    Args:
        loaded: the model; only copies of it are patched.
        r: the schedule, in any form.
        batch: images per forward pass.
        dtype: "float32", "bfloat16" or "float16".
        device: its name in the framework, such as "cpu", "cuda" (torch) or "gpu:0" (Paddle).
        mode: "eager", "compile" (torch), "cudagraphs" (torch on a GPU) or "to_static" (Paddle).
        train: forward and backward instead of forward only.
        rounds: interleaved timing rounds, after a warm-up.
        repeat: calls in a row between two readings of the clock; more if a call is short.
        trim_last: patch with ``trim_last=True``, and compute the limit for it.
        prop_attn: how sizes enter attention, as for ``apply_patch``.
        matching: which tokens merge, as for ``apply_patch``.
        others: further forms to time, by name: each function turns a copy of the unpatched model into a
            callable model.

    Raises:
        ArgumentValueError: the device, dtype or mode is not available.
        UnsupportedModelError: the model cannot be patched.
    """
    place = place_of(loaded.model, device, dtype)
    patch = functools.partial(
        adapter_of(place.runtime.name).apply_patch,
        r=r,
        trim_last=trim_last,
        prop_attn=prop_attn,
        matching=matching,
    )
    unpatched = place.put(copy.deepcopy(loaded.model))
    models = {
        "unpatched": unpatched,
        "merging": patch(copy.deepcopy(unpatched)),
        "dropping": free_drop(patch(copy.deepcopy(unpatched))),
    }
    for name, make in (others or {}).items():
        models[name] = make(copy.deepcopy(unpatched))
    x = place.images(batch, loaded.input_shape)
    with place.no_grad():
        models["merging"](x)
    tome = models["merging"].tome
    tokens, left = tome.num_tokens, tome.tokens[-1]
    calls = {
        name: _call(place, model, place.compile_model(model, mode, tuple(x.shape)), x, train)
        for name, model in models.items()
    }
    timed = list(interleave(calls, rounds, wait=place.wait, repeat=repeat))
    limit = arithmetic_of(models["merging"]).limit(tokens, r)
    speedup = median_ratio(timed, "unpatched", "merging")
    by_hand = mode == "eager" and not train and not place.on_gpu
    return Measurement(
        model=loaded.name,
        framework=place.runtime.name,
        r=r,
        batch=batch,
        image=loaded.preprocess.size,
        tokens=tokens,
        tokens_left=left,
        dtype=dtype,
        device=device,
        mode=mode,
        train=train,
        images_per_second={
            name: batch / statistics.median(seconds[name] for seconds in timed) for name in calls
        },
        speedup=speedup,
        speedup_quartiles=quartiles(timed, "unpatched", "merging"),
        limit=limit,
        limit_share=speedup / limit,
        drop_speedup=median_ratio(timed, "unpatched", "dropping"),
        drop_share=median_ratio(timed, "dropping", "merging"),
        drop_share_quartiles=quartiles(timed, "dropping", "merging"),
        merge_share=(
            _merge_share(models["merging"], calls["merging"], min(rounds, 5)) if by_hand else None
        ),
        peak_bytes={name: peak_bytes(place, call) for name, call in calls.items()},
        rounds=rounds,
        trim_last=trim_last,
        prop_attn=tome.prop_attn,
        matching=name_of(matching),
        ahead={name: median_ratio(timed, name, "merging") for name in others or {}},
    )


def _call(
    place: Place, model: Any, run: Callable[[Any], Any], x: Any, train: bool
) -> Callable[[], Any]:
    def forward() -> Any:
        with place.no_grad():
            return run(x)

    def step() -> None:
        place.runtime.to_float32(logits_of(run(x))).sum().backward()
        place.runtime.forget_gradients(model)

    if train:
        model.train()
        return step
    model.eval()
    return forward


def _merge_share(model: Any, call: Callable[[], Any], rounds: int) -> float:
    """Return the median share of a forward pass from keys to merged tokens, by a clock on the host."""
    shares = []
    with handle_of(model).timings() as seconds:
        for _ in range(rounds):
            before, start = seconds["all of the merge"], time.perf_counter()
            call()
            shares.append((seconds["all of the merge"] - before) / (time.perf_counter() - start))
    return statistics.median(shares)
