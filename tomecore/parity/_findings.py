"""What differs between two models before they run: settings, epsilons, weights. Read, never called."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tomecore.adapters import Handle
from tomecore.errors import ArgumentValueError
from tomecore.frameworks import framework_of, named_modules, to_numpy
from tomecore.models.convert import convert_weights
from tomecore.parity._trace import comparable_handle

__all__ = ["EMBEDDING", "Finding", "findings_of_modules", "findings_of_weights"]

#: the layer of what comes before layer 0; what follows the last of n layers has the number n
EMBEDDING = -1

_LAYOUT = {"torch": "timm", "paddle": "plsc"}
#: what is called so in messages -> the attribute that libraries keep it in
_ATTRIBUTES = {
    "epsilon": ("eps", "epsilon", "_epsilon", "variance_epsilon"),
    "number of heads": ("num_heads", "num_attention_heads", "nhead"),
    "scale of the attention": ("scale", "scaling"),
    "approximation of GELU": ("approximate", "_approximate"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that differs.

    Args:
        layer: where: a layer, :data:`EMBEDDING` before the first, the number of layers after the last.
        text: what, as a sentence without a full stop.
    """

    layer: int
    text: str


def findings_of_modules(model_a: Any, model_b: Any) -> list[Finding]:
    """Epsilons, heads, attention scales and kinds of GELU, compared in their order within each layer."""
    places = [_by_layer(comparable_handle(m, n), m) for m, n in ((model_a, "a"), (model_b, "b"))]
    found = []
    for (layer, what), values in places[0].items():
        others = places[1].get((layer, what), [])
        if len(values) != len(others):
            continue  # other libraries have other modules: nothing to pair
        differ = [pair for pair in zip(values, others, strict=True) if pair[0][1] != pair[1][1]]
        if differ:
            (path_a, a), (path_b, b) = differ[0]
            paths = path_a if path_a == path_b else f"{path_a} (in b {path_b})"
            more = f" (and {len(differ) - 1} more in this layer)" if len(differ) > 1 else ""
            found.append(Finding(layer, f"another {what}: {paths} has {a} in a and {b} in b{more}"))
    return found


def _by_layer(tome: Handle, model: Any) -> dict[tuple[int, str], list[tuple[str, Any]]]:
    """(layer, what) -> (path, value) of every module that has such a setting, in order."""
    numbers = {
        id(module): number
        for number, block in enumerate(tome.blocks)
        for _, module in named_modules(block)
    }
    found: dict[tuple[int, str], list[tuple[str, Any]]] = {}
    layer = EMBEDDING
    for path, module in named_modules(model):
        if id(module) in numbers:
            layer = numbers[id(module)]
        elif layer != EMBEDDING:
            layer = len(tome.blocks)
        for what, value in _settings_of(module):
            found.setdefault((layer, what), []).append((path, value))
    return found


def _settings_of(module: Any) -> Iterator[tuple[str, Any]]:
    for what, names in _ATTRIBUTES.items():
        for name in names:
            value = vars(module).get(name)
            if what.startswith("approximation") and isinstance(value, str | bool):
                yield what, "tanh" if value in (True, "tanh") else "none"
                break
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield what, value if isinstance(value, int) else float(f"{value:.9g}")
                break


def findings_of_weights(model_a: Any, model_b: Any) -> tuple[list[Finding], str]:
    """Weights that differ, by submodule, and a remark on what was compared."""
    try:
        states = _states(model_a, model_b)
    except ArgumentValueError:
        return [], "the weights were not compared: their names differ and no conversion is known"
    tome = comparable_handle(model_a, "model_a")
    modules: dict[str, list[str]] = {}
    for name in sorted({*states[0], *states[1]}, key=_natural):
        text = _difference(states[0].get(name), states[1].get(name))
        if text:
            module, _, leaf = name.rpartition(".")
            leaf = "" if leaf == "weight" or not module else f" ({leaf})"
            modules.setdefault(module or name, []).append(text + leaf)
    found = [
        Finding(_layer_of(name, tome), f"the weights of {name} differ: {'; '.join(texts)}")
        for name, texts in modules.items()
    ]
    same = f"all {len(states[0])} weights are equal"
    return found, f"{len(found)} modules have different weights" if found else same


def _states(model_a: Any, model_b: Any) -> list[dict[str, np.ndarray]]:
    models = (model_a, model_b)
    frameworks = [framework_of(model) for model in models]
    states = [dict(model.state_dict()) for model in models]
    if frameworks[0] == frameworks[1] and states[0].keys() == states[1].keys():
        return [{n: to_numpy(v) for n, v in state.items()} for state in states]
    return [
        convert_weights(state, source=_LAYOUT[framework], target="timm")
        for state, framework in zip(states, frameworks, strict=True)
    ]


def _difference(a: np.ndarray | None, b: np.ndarray | None) -> str:
    """How two weights differ, in words; "" if they do not, but for the rounding of float32."""
    if a is None or b is None:
        return f"only {'a' if b is None else 'b'} has them"
    if a.shape != b.shape:
        transposed = " (transposed)" if a.shape == b.shape[::-1] else ""
        return f"shape {a.shape} in a, {b.shape} in b{transposed}"
    if _equal(a, b):
        return ""
    if a.ndim == 2 and a.shape[0] == a.shape[1] and _equal(a.T, b):
        return "b has the transpose of a"
    for name, array in (("a", a), ("b", b)):
        if array.size > 1 and (array == array.flat[0]).all():
            return f"{name} has {array.flat[0]:g} everywhere, as before loading"
    return f"by {np.abs(a.astype(np.float64) - b).max():.1e} at most"


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    a = a.astype(np.float64)
    tolerance = 1e-6 * np.abs(a).max(initial=0)
    return bool(np.abs(a - b).max(initial=0) <= tolerance)


def _layer_of(name: str, tome: Handle) -> int:
    number = re.search(rf"(?:^|\.){re.escape(tome.layers)}\.(\d+)\.", name + ".")
    if number:
        return int(number[1])
    last = re.match(r"(fc_)?norm|head|ln_post|classifier|proj$", name)
    return len(tome.blocks) if last else EMBEDDING


def _natural(name: str) -> list[Any]:
    return [(1, int(p), "") if p.isdigit() else (0, 0, p) for p in name.split(".")]
