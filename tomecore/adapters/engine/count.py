"""Count the multiply-adds of a tower from its own weights, without running it.

Every weight of a product is used once for each token (or image position) that it is applied to, so its number
of entries is its multiply-adds per token. This holds for a linear layer in any layout, and for a convolution,
whose weight is (out, in / groups, ...). To find the weights of a block that are used after the merge, the MLP
half is called with a recording stand-in for the block.
"""

from __future__ import annotations

import math
import re
import types
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from tomecore.adapters.engine.config import Config
from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import attributes
from tomecore.errors import UnsupportedModelError
from tomecore.schedule.arithmetic import Arithmetic, LayerArithmetic

__all__ = ["count"]

#: paths of parameters that are not weights of a product: absolute and relative positions
_POSITIONS = re.compile(r"rel_?pos|relative_?pos|position|(^|[._])pos_embed")
#: names of parameters that are not weights of a product, if the module holds them directly
_TABLES = re.compile(r"pos_|position|table|token|embedding|query|latent|probe|lambda|gamma|scale")
#: paths of linear layers that are applied to each patch
_PATCHES = re.compile(r"patch|embed")
#: convolutions in branches of a stem, outside its main path
_BESIDE = re.compile(r"downsample|shortcut")
#: names of the output projection after the heads
_OUTPUTS = (["proj"], ["out_proj"], ["o_proj"])
#: parameters of differential attention
_DIFFERENTIAL = re.compile(r"(^|\.)lambda_(q1|a)$")
#: layers outside the blocks that are applied to each token: keys and values of attention pooling
_PER_TOKEN = {"kv", "k", "v", "key", "value", "kv_proj", "k_proj", "v_proj"}
_PER_TOKEN |= {"k_proj_weight", "v_proj_weight"}


def count(config: Config, model: Any) -> Arithmetic:
    """Count the multiply-adds of the tower of ``config`` in ``model``, with its patch embedding.

    A decoder after the blocks is counted as if it processed one token. Small networks that compute position
    biases, and products that look up or resize positions, are not counted: they are the same for any r.

    Raises:
        UnsupportedModelError: see :func:`tomecore.schedule.arithmetic.arithmetic_of`.
    """
    layers = tuple(_layer(config, index, block) for index, block in enumerate(config.blocks))
    outside = 0, 0, 0
    for module in modules_around(config.host, config.tower, model):
        outside = _outside(config, module)
        if outside[0]:
            break
    if not config.trim_last:
        return Arithmetic(layers, config.protected, *outside)
    keys = _keys(config, config.blocks[-1])
    return Arithmetic(layers, config.protected, *outside, rows=config.protected, keys=keys)


def modules_around(host: Host, tower: Any, model: Any) -> Iterator[Any]:
    """Yield the tower, and the modules around it up to ``model``, one of which holds the patch embedding."""
    named = dict(host.named_modules(model))
    (path,) = [path for path, module in named.items() if module is tower]
    while path:
        yield named[path]
        path = path.rpartition(".")[0]
    yield model


def _outside(config: Config, module: Any) -> tuple[int, int, int]:
    """Count the multiply-adds outside the blocks: per patch, per token, and per image."""
    host = config.host
    inside = {id(p) for block in config.blocks for p in block.parameters()}
    positions = resolutions(host, module, config.blocks[0])
    queries = {  # of attention pooling: one, unless the module holds more
        path.rpartition(".")[0]: parameter.shape
        for path, parameter in module.named_parameters()
        if path.rpartition(".")[2] == "query" and len(parameter.shape) == 2
    }
    per_patch = once = 0
    per_token = 2 * sum(math.prod(shape) for shape in queries.values())
    for path, parameter in weights(host, module):
        if id(parameter) in inside:
            continue
        amount = math.prod(parameter.shape)
        above, _, name = path.rpartition(".")
        times = max([n for pool, (n, _) in queries.items() if below(path, pool)], default=1)
        if len(parameter.shape) > 2 or _PATCHES.search(above):
            per_patch += amount * positions.get(above, 1)
        elif (
            name == "in_proj_weight"
        ):  # projects to queries, keys and values; there are few queries
            per_token += amount // 3 * 2
            once += times * (amount - amount // 3 * 2)
        elif above.rpartition(".")[2] in _PER_TOKEN or name in _PER_TOKEN:
            per_token += amount
        else:
            once += times * amount
    return per_patch, per_token, once


def resolutions(host: Host, module: Any, first: Any) -> dict[str, int]:
    """Return, by path, the positions per patch at which each convolution before the blocks is applied.

    A stem works at a finer resolution, by the strides of all convolutions that follow it. The stride of a
    branch next to the main path (downsample, shortcut) is already counted in the main path.
    """
    found: dict[str, int] = {}
    before = []
    for path, one in host.named_modules(module):
        if one is first:
            break
        stride = getattr(one, "stride", getattr(one, "_stride", None))
        if isinstance(stride, int | tuple | list):
            before.append((path, math.prod(stride) if not isinstance(stride, int) else stride**2))
    factor = 1
    for path, stride in reversed(before):
        found[path] = factor
        if not _BESIDE.search(path):
            factor *= stride
    return found


def _layer(config: Config, index: int, block: Any) -> LayerArithmetic:
    found = dict(weights(config.host, block))
    unlink_schedule = {path: math.prod(parameter.shape) for path, parameter in found.items()}
    sides = Counter(side for p in found.values() if len(p.shape) == 2 for side in p.shape)
    if not sides:
        raise UnsupportedModelError(
            f"the multiply-adds of block {index} ({config.spec.family}) cannot be counted: it has no "
            "parameter with two axes. Count before its weights are packed (quantised) or sharded."
        )
    ((width, _),) = sides.most_common(1)
    called = parts_fed(config, index, block)
    behind = {path for path in found if any(below(path, one) for one in called)}
    feed = sum(unlink_schedule[path] for path in behind)
    attention = {path: p for path, p in found.items() if path not in behind}
    return LayerArithmetic(
        sum(unlink_schedule.values()) - feed, feed, pairs(config, block, attention, width)
    )


def _keys(config: Config, block: Any) -> int:
    """Count the multiply-adds per token for keys and values, for a last block with ``trim_last``."""
    shares: Mapping[str, float] = config.spec.trim.keys  # type: ignore[union-attr]
    found = 0.0
    for path, parameter in weights(config.host, block):
        for part, share in shares.items():
            if below(path, part):
                found += share * math.prod(parameter.shape)
    return round(found)


def pairs(config: Config, block: Any, attention: Mapping[str, Any], width: int) -> int:
    """Return half of the multiply-adds per pair of tokens: the width of all heads together.

    It is the width of the model, unless the output projection has another input width.
    """
    outputs = [p for path, p in attention.items() if path.split(".")[-2:-1] in _OUTPUTS]
    if config.spec.feed is not None and len(outputs) == 1 and width in outputs[0].shape:
        ((inner, outer),) = [outputs[0].shape]
        width = int(inner * outer) // width
    if any(_DIFFERENTIAL.search(name) for name, _ in block.named_parameters()):
        width = width * 3 // 2  # two score maps, each with half the width, and values of full width
    keys = attributes(block, config.spec.key) if "*" in config.spec.key else [None]
    return width * len(keys)  # several attentions side by side


def weights(host: Host, module: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parameters below ``module`` that are weights of a product, with their paths."""
    tables = {
        path
        for path, found in host.named_modules(module)
        if any(cls.__name__ == "Embedding" for cls in type(found).__mro__)
    }
    for path, parameter in module.named_parameters():
        above, _, name = path.rpartition(".")
        named_weight = "weight" in name
        if above in tables or len(parameter.shape) < 2 or _POSITIONS.search(path):
            continue
        if named_weight or (len(parameter.shape) == 2 and not _TABLES.search(name)):
            yield path, parameter


def below(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


def parts_fed(config: Config, index: int, block: Any) -> set[str]:
    """Return the paths of the modules and parameters that the MLP half of ``block`` uses."""
    spec, host = config.spec, config.host
    called: set[str] = set()
    if spec.feed is None:
        return called
    x = host.ones((1, 1), host.device(block))[:, :, None]
    try:
        spec.feed(StandIn(host, block, "", called), x)
    except Exception as error:  # without a real block, the MLP half may raise anything
        raise UnsupportedModelError(
            f"the multiply-adds of block {index} ({spec.family}) cannot be counted: a trial run of its MLP "
            f"half, to find the modules that it calls, failed with {type(error).__name__}: {error}"
        ) from error
    return called


class StandIn:
    """A stand-in for a block or one of its modules: it records which modules are called.

    A call computes nothing and returns its input: hooks do not run, and the dtype, the device and the
    sharding of the weights do not matter. Methods do run, with the stand-in as ``self``.
    """

    def __init__(self, host: Host, module: Any, path: str, called: set[str]) -> None:
        self._host, self._module, self._path, self._called = host, module, path, called

    def __getattr__(self, name: str) -> Any:
        if name == "training":
            return False
        found = getattr(self._module, name)
        if isinstance(found, types.MethodType) and found.__self__ is self._module:
            return types.MethodType(found.__func__, self)
        return self._at(name, found)

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]

    def __iter__(self) -> Iterator[Any]:
        for name, child in self._host.named_children(self._module):
            yield self._at(name, child)

    def __len__(self) -> int:
        return len(list(self._host.named_children(self._module)))

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        self._called.add(self._path)
        return x

    def _at(self, name: str, found: Any) -> Any:
        path = f"{self._path}.{name}".strip(".")
        if isinstance(found, self._host.module_class):
            return StandIn(self._host, found, path, self._called)
        self._called.add(path)  # possibly a parameter
        return found
