"""Find why two models diverge: by settings and weights that differ, and by two more runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tomecore.adapters import Handle, handle_of
from tomecore.errors import ArgumentValueError
from tomecore.frameworks import framework_of, named_modules, runtime_of, to_numpy
from tomecore.models.convert import convert_weights
from tomecore.parity._compare import compare
from tomecore.parity._divergence import Divergence, clear_flips, first_divergence
from tomecore.parity._report import Report
from tomecore.parity._tolerance import Tolerance

__all__ = ["Case", "differing_settings", "likely_causes"]

#: images in each further run
_FEW = 2
#: the layer number of everything before layer 0; what follows the last of n layers has the number n
_EMBEDDING = -1
#: name of a setting in messages -> the attributes in which libraries keep it
_ATTRIBUTES = {
    "epsilon": ("eps", "epsilon", "_epsilon", "variance_epsilon"),
    "number of heads": ("num_heads", "num_attention_heads", "nhead"),
    "scale of the attention": ("scale", "scaling"),
    "approximation of GELU": ("approximate", "_approximate"),
}


@dataclass(frozen=True)
class Case:
    """Two patched models that diverge.

    Args:
        models: a and b.
        images: (n, C, H, W) images that both ran on.
        tolerance: the differences that count as rounding.
        report: all numbers; None if the models merge different amounts.
        place: the place where they diverge.
    """

    models: tuple[Any, Any]
    images: np.ndarray
    tolerance: Tolerance
    report: Report | None
    place: Divergence

    @property
    def handles(self) -> tuple[Handle, Handle]:
        """``model.tome`` of both models."""
        return handle_of(self.models[0]), handle_of(self.models[1])

    @property
    def first_merge(self) -> int | None:
        """The first layer that merges; None if none does."""
        layers = () if self.report is None else self.report.layers
        return min((layer.layer for layer in layers), default=None)

    def run_again(self) -> Divergence | None:
        """Return where the models, as they are now, diverge on a few of the images; None if they agree."""
        report = compare(*self.models, self.images[:_FEW])
        return first_divergence(report, self.tolerance, self.handles[0].layers)


class Finding(NamedTuple):
    """One difference: its layer, and a sentence about it without a full stop."""

    layer: int
    text: str

    def with_place(self, depth: int) -> str:
        """Return the sentence with its place, in a model of ``depth`` layers."""
        places = {_EMBEDDING: "before layer 0", depth: "after the last layer"}
        return f"{places.get(self.layer, f'in layer {self.layer}')}, {self.text}"


def likely_causes(case: Case) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (causes, the likeliest first; remarks) for two models that diverge."""
    place, depth = case.place, len(case.handles[0].blocks)
    causes = _of_numbers(case) + _of_merging(case)
    weights, remark = _weights_that_differ(*case.models)
    differ: list[str] = []
    if place.half not in ("schedule", "undecided"):
        after = _EMBEDDING if place.half == "embedding" else depth
        where = after if place.layer is None else place.layer
        found = [*weights, *_settings_that_differ(*case.models)]
        found.sort(key=lambda one: -one.layer)
        differ = [one.with_place(depth) for one in found if one.layer <= where]
    remarks = []
    if case.report is not None and place.half != "undecided":
        unmerged = _without_merging(case)
        if unmerged is not None:
            remarks.append(f"with r=0, too, they diverge, at {unmerged.where}")
        else:
            remarks.append(_agree_unmerged(case, bool(differ)))
            attention = _of_attention(case)
            # A setting that is known to differ is likelier than a bias that may be missing.
            a, b = (bool(handle.prop_attn) for handle in case.handles)
            differ = [*attention, *differ] if a != b else [*differ, *attention]
    causes += differ
    if len(weights) != 1:
        remarks.append(remark)
    return tuple(causes) or (_unknown_cause(place),), tuple(remarks)


def differing_settings(model_a: Any, model_b: Any) -> tuple[str, ...]:
    """Return the settings of modules that differ although the models agree within the tolerance."""
    found = _settings_that_differ(model_a, model_b)
    if not found:
        return ()
    more = f", and {len(found) - 1} more such layers or settings" if len(found) > 1 else ""
    first = found[0].with_place(len(handle_of(model_a).blocks))
    return (f"too small a difference to show here: {first}{more}",)


def _of_numbers(case: Case) -> list[str]:
    """Return NaN or infinity as a cause, if there is any."""
    if not np.isfinite(case.images).all():
        return ["the images are not all finite numbers"]
    outputs = () if case.report is None else case.report.outputs
    broken = [name for name, output in zip("ab", outputs) if not np.isfinite(output).all()]  # noqa: B905
    if not broken:
        return []
    return [f"NaN or infinity in {' and '.join(broken)}, not before {case.place.where}"]


def _of_merging(case: Case) -> list[str]:
    """Return the causes in merge decisions and in settings of the patch."""
    (a, b), place, report = case.handles, case.place, case.report
    if place.half in ("decisions", "schedule") and a.protected != b.protected:
        few, many = sorted((a.protected, b.protected))
        who = "a" if a.protected == few else "b"
        which = f"token {few}" if many == few + 1 else f"tokens {few} to {many - 1}"
        causes = [
            f"another number of protected tokens: {a.protected} in a, {b.protected} in b, so in layer "
            f"{place.layer} {who} may merge {which}, a class, distillation or register token"
        ]
    elif place.half == "decisions" and report is not None:
        causes = _of_decisions(report, place.layer, case.tolerance)
    else:
        causes = []
    if place.half == "schedule" and a.r != b.r:
        causes.append(f"another r: {a.r} in a, {b.r} in b")
    return causes


def _of_decisions(report: Report, layer: int | None, tolerance: Tolerance) -> list[str]:
    """Return the causes of decisions that differ with equal keys and equal settings."""
    flips = clear_flips(report, layer, tolerance)
    wrong = max(flips, key=lambda flip: flip.gap).wrong
    who = f"{wrong} ({report.names['ab'.index(wrong)]})" if wrong else "one of the two"
    if all(flip.tied for flip in flips):
        return [
            f"an unstable sort in {who}: in layer {layer} decisions differ only among exact ties, which "
            "go to the first token"
        ]
    return [f"the matching in {who}: its plan does not follow from its own keys"] if wrong else []


def _without_merging(case: Case) -> Divergence | None:
    """Return where the models diverge with r=0; None if they agree."""
    before = [model.r for model in case.models]
    try:
        for model in case.models:
            model.r = 0
        return case.run_again()
    finally:
        for model, r in zip(case.models, before, strict=True):
            model.r = r


def _agree_unmerged(case: Case, differ: bool) -> str:
    """Return the remark on models that agree with r=0."""
    agree = f"with r=0 they agree on {len(case.images[:_FEW])} images"
    half, layer, first = case.place.half, case.place.layer, case.first_merge
    merged = first is not None and half != "embedding"
    if first is not None and layer is not None:
        merged = layer > first or (layer == first and half != "keys")
    if not merged:
        return (
            f"{agree}, but nothing has merged up to there: what differs is too small to show in the "
            "outputs of blocks"
        )
    if differ:
        return f"{agree}, where what differs may be too small to show"
    return f"{agree}, so merging is at fault"


def _of_attention(case: Case) -> list[str]:
    """Return proportional attention as a cause, if the models agree without it."""
    (a, b), layer, first = case.handles, case.place.layer, case.first_merge
    if first is None or layer is None or layer <= first or not (a.prop_attn or b.prop_attn):
        return []
    with a.with_prop_attn(False), b.with_prop_attn(False):
        if case.run_again() is not None:
            return []
    settings = f"prop_attn is {a.prop_attn} in a and {b.prop_attn} in b"
    if bool(a.prop_attn) == bool(b.prop_attn):
        settings += ", but one of them does not add log(size) to its attention scores"
    return [
        f"dropped proportional attention: {settings}; layer {layer} is the first to show it after the "
        f"merge in layer {first}, and without it in both they agree"
    ]


def _unknown_cause(place: Divergence) -> str:
    if place.half == "undecided":
        return "rounding, in keys that are nearly equal; nothing was found to be wrong"
    if place.half == "decisions":
        return "rounding, if the score gap is that small; else keys that are computed differently"
    return (
        f"no setting and no weight that can be seen from outside; read what computes {place.where}"
    )


def _layers_of(model: Any) -> dict[str, int]:
    """Return the layer of every module of a patched model, by its path."""
    blocks = handle_of(model).blocks
    inside = {id(module): n for n, block in enumerate(blocks) for _, module in named_modules(block)}
    layers = {"proj": len(blocks)}  # a parameter of CLIP's towers, by its own name
    layer = _EMBEDDING
    for path, module in named_modules(model):
        outside = _EMBEDDING if layer == _EMBEDDING else len(blocks)
        layers[path] = layer = inside.get(id(module), outside)
    return layers


def _settings_that_differ(model_a: Any, model_b: Any) -> list[Finding]:
    """Return the epsilons, heads, attention scales and kinds of GELU that differ, paired by their order."""
    a, b = _settings_by_layer(model_a), _settings_by_layer(model_b)
    found = []
    for (layer, what), values in a.items():
        others = b.get((layer, what), [])
        if len(values) != len(others):
            continue  # another library has other modules, so they cannot be paired
        differ = [pair for pair in zip(values, others, strict=True) if pair[0][1] != pair[1][1]]
        if differ:
            (path_a, value_a), (path_b, value_b) = differ[0]
            paths = path_a if path_a == path_b else f"{path_a} (in b {path_b})"
            more = f" (and {len(differ) - 1} more in this layer)" if len(differ) > 1 else ""
            text = f"another {what}: {paths} has {value_a} in a and {value_b} in b{more}"
            found.append(Finding(layer, text))
    return found


def _settings_by_layer(model: Any) -> dict[tuple[int, str], list[tuple[str, Any]]]:
    """Return (layer, what) -> (path, value) of every module that has such a setting, in order."""
    layers = _layers_of(model)
    found: dict[tuple[int, str], list[tuple[str, Any]]] = {}
    for path, module in named_modules(model):
        for what, value in _settings_of(module):
            found.setdefault((layers[path], what), []).append((path, value))
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


def _weights_that_differ(model_a: Any, model_b: Any) -> tuple[list[Finding], str]:
    """Return the weights that differ, by module, and a remark on the comparison."""
    try:
        a, b = _states(model_a, model_b)
    except ArgumentValueError:
        return [], "the weights were not compared: their names differ and no conversion is known"
    layers = _layers_of(model_a)
    order = {path: place for place, path in enumerate(layers)}
    texts: dict[str, list[str]] = {}
    for name in sorted({*a, *b}, key=lambda name: (order.get(name.rpartition(".")[0], 0), name)):
        text = _difference(a.get(name), b.get(name))
        if text:
            module, _, leaf = name.rpartition(".")
            leaf = "" if leaf == "weight" or not module else f" ({leaf})"
            texts.setdefault(module or name, []).append(text + leaf)
    found = [
        Finding(layers.get(path, _EMBEDDING), f"the weights of {path} differ: {'; '.join(parts)}")
        for path, parts in texts.items()
    ]
    same = f"all {len(a)} weights are equal"
    return found, f"{len(found)} modules have different weights" if found else same


def _states(*models: Any) -> list[dict[str, np.ndarray]]:
    """Return the weights of both models under the same names and in the same layout."""
    states = [dict(model.state_dict()) for model in models]
    if len({framework_of(model) for model in models}) == 1 and states[0].keys() == states[1].keys():
        return [{n: to_numpy(v) for n, v in state.items()} for state in states]
    return [
        convert_weights(state, source=runtime_of(model).layout, target="timm")
        for model, state in zip(models, states, strict=True)
    ]


def _difference(a: np.ndarray | None, b: np.ndarray | None) -> str:
    """Return how two weights differ, in words; "" if only by the rounding of float32."""
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
