"""The models the laws are checked on outside tests/integration: our own ViTs, one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import tomecore.models.paddle
import tomecore.models.torch
from adapters.frameworks import PADDLE, TORCH, Framework
from tomecore.adapters.engine.find import find_tower
from tomecore.adapters.engine.spec import Spec, attribute

__all__ = ["OWN", "Case", "by_name", "golden_runs", "one_of_each_spec"]

#: Small enough to be fast, four heads so that averaging the key over heads matters.
TINY = {"patch_size": 4, "embed_dim": 32, "num_heads": 4}


@dataclass(frozen=True)
class Case:
    """One kind of model.

    Args:
        name: the id of its tests.
        fw: its framework.
        build: ``(img_size=, depth=) -> model``, randomised afterwards.
        prefix: the number of prefix tokens, which never merge.
        pooled: pools over tokens, so that restore=False must be refused.
        exact: the halves equal the block bit for bit; otherwise it has our attention half.
        drops: drops paths at random in training.
        golden: builds from the arguments in the golden file of the framework; only the plain ViT.
        layers: dotted path of the list of blocks in what ``build`` returns.
        given: ``(model, x) -> dict``, what the model passes to a block in addition to tokens ``x``.
        prop_attn: the default of proportional attention.
        dense: each layer returns all tokens, because the model's readers need them.
        rounds: it rounds to float32 internally, whatever its weights are, so there are no finite differences.
    """

    name: str
    fw: Framework
    build: Callable[..., Any]
    prefix: int = 1
    pooled: bool = False
    exact: bool = True
    drops: bool = False
    golden: Callable[..., Any] | None = None
    layers: str = "blocks"
    given: Callable[[Any, Any], dict[str, Any]] | None = None
    prop_attn: bool = True
    dense: bool = False
    rounds: bool = False

    def blocks(self, model: Any) -> list[Any]:
        """The blocks of what ``build`` returned."""
        return list(attribute(model, self.layers))

    def arguments(self, model: Any, x: Any) -> dict[str, Any]:
        """Return what a block gets in addition to ``x``."""
        return {} if self.given is None else self.given(model, x)

    def entering(self, model: Any, images: np.ndarray) -> Any:
        """The tokens that enter the first block, with their graph."""
        return self.fw.tokens(model, images, self.blocks(model)[0])

    def model(self, *, size: int = 32, depth: int = 4, seed: int = 0) -> Any:
        """Float64, evaluation mode, every parameter random."""
        return self.fw.prepare(self.build(img_size=size, depth=depth), seed)

    @property
    def spec(self) -> Spec:
        """The spec that describes its blocks."""
        model = self.build(img_size=16, depth=1)
        spec, _, _ = find_tower(self.fw.tome.HOST, self.fw.tome.SPECS, model)
        return spec

    def patched(self, *, size: int = 32, depth: int = 4, **settings: Any) -> Any:
        return self.fw.tome.apply_patch(self.model(size=size, depth=depth), **settings)

    def images(self, batch: int = 3, *, size: int = 32, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(100 + seed).standard_normal((batch, 3, size, size))

    def tensors(self, batch: int = 3, *, size: int = 32, seed: int = 0) -> Any:
        return self.fw.tensor(self.images(batch, size=size, seed=seed))

    def num_tokens(self, size: int = 32) -> int:
        return self.prefix + (size // TINY["patch_size"]) ** 2


def _own(cls: Any, **fixed: Any) -> Callable[..., Any]:
    def build(**sizes: Any) -> Any:
        return cls.from_config({**TINY, "num_classes": 7, "qkv_bias": True, **fixed, **sizes})

    return build


def _both(name: str, prefix: int = 1, pooled: bool = False, **fixed: Any) -> list[Case]:
    classes = (
        (TORCH, tomecore.models.torch.VisionTransformer),
        (PADDLE, tomecore.models.paddle.VisionTransformer),
    )
    return [
        Case(
            f"{fw.name}-{name}",
            fw,
            _own(cls, **fixed),
            prefix,
            pooled,
            exact=fw is TORCH,
            drops="drop_path_rate" in fixed,
            golden=cls if name == "plain" else None,
        )
        for fw, cls in classes
    ]


OWN = [
    *_both("plain"),
    *_both("distilled", prefix=2, distilled=True),
    *_both("drop-path", drop_path_rate=0.5),
    Case(
        "paddle-scaled",
        PADDLE,
        _own(tomecore.models.paddle.VisionTransformer, qk_scale=32**-0.5),
        exact=False,
    ),
    *_both("average", prefix=0, pooled=True, class_token=False, global_pool="avg"),
]


def by_name(cases: list[Case]) -> Mapping[str, Case]:
    return {case.name: case for case in cases}


def one_of_each_spec(cases: list[Case]) -> list[Case]:
    """The first case of each spec that the cases have."""
    first: dict[int, Case] = {}
    for case in cases:
        first.setdefault(id(case.spec), case)
    return list(first.values())


def golden_runs(config: Mapping[str, Any]) -> list[tuple[str, Any, bool]]:
    """(prefix of the arrays, r, prop_attn) of each run of a golden file."""
    return [
        (
            f"run{index:02d}",
            tuple(run["r"]) if run["r_is"] == "tuple" else run["r"],
            run["prop_attn"],
        )
        for index, run in enumerate(config["runs"])
    ]
