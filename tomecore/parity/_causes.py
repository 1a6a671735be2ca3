"""From what differs first to the likely cause: settings, weights, and what two more runs tell."""

from __future__ import annotations

from typing import Any

import numpy as np

from tomecore.parity._compare import compare
from tomecore.parity._findings import (
    EMBEDDING,
    Finding,
    findings_of_modules,
    findings_of_weights,
)
from tomecore.parity._place import Place, clear_flips, located
from tomecore.parity._report import Report
from tomecore.parity._tolerance import Tolerance
from tomecore.parity._trace import comparable_handle

__all__ = ["likely_causes", "unseen"]

#: images that a further run looks at
_FEW = 2


def likely_causes(
    model_a: Any,
    model_b: Any,
    images: np.ndarray,
    report: Report | None,
    place: Place,
    tolerance: Tolerance,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(causes, remarks) of two models that part at ``place``."""
    depth = len(comparable_handle(model_a, "model_a").blocks)
    causes = _of_numbers(report, images, place) + _of_merging(
        report, place, model_a, model_b, tolerance
    )
    weights, remark = findings_of_weights(model_a, model_b)
    findings: list[Finding] = []
    if place.half not in ("schedule", "undecided"):
        where = _number(place, depth)
        findings = [*weights, *findings_of_modules(model_a, model_b)]
        findings = [finding for finding in findings if finding.layer <= where]
        findings.sort(key=lambda finding: where - finding.layer)
    differ = [_located(finding, depth) for finding in findings]
    remarks = []
    if report is not None and place.half != "undecided":
        few = images[:_FEW]
        without = _run_again(model_a, model_b, few, tolerance)
        if without is None:
            merged = _merged_before(report, place)
            remarks.append(_agree_unmerged(len(few), merged, bool(differ)))
            attention = _of_attention(report, place, model_a, model_b, few, tolerance)
            # A setting that is seen to differ is likelier than a bias that is not seen to be missing.
            seen = _other_attention(model_a, model_b)
            differ = [*attention, *differ] if seen else [*differ, *attention]
        else:
            remarks.append(f"with r=0, too, they diverge, at {without.where}")
    causes += differ
    if len(weights) != 1:
        remarks.append(remark)
    return tuple(causes) or (_unknown(place),), tuple(remarks)


def _merged_before(report: Report, place: Place) -> bool:
    """Whether anything has merged on the way to ``place``."""
    first = min((layer.layer for layer in report.layers), default=None)
    if first is None or place.half == "embedding":
        return False
    if place.layer is None or place.layer > first:
        return True
    return place.layer == first and place.half != "keys"


def _agree_unmerged(images: int, merged: bool, differ: bool) -> str:
    """What it says that the models agree with r=0."""
    agree = f"with r=0 they agree on {images} images"
    if not merged:
        return (
            f"{agree}, but nothing has merged up to there: what differs is too small to show in the "
            "outputs of blocks"
        )
    if differ:
        return f"{agree}, where what differs may be too small to show"
    return f"{agree}, so merging is at fault"


def _other_attention(model_a: Any, model_b: Any) -> bool:
    a, b = comparable_handle(model_a, "model_a"), comparable_handle(model_b, "model_b")
    return bool(a.prop_attn) != bool(b.prop_attn)


def unseen(model_a: Any, model_b: Any) -> tuple[str, ...]:
    """Settings of modules that differ, though the models agree within the tolerance."""
    found = findings_of_modules(model_a, model_b)
    if not found:
        return ()
    more = f", and {len(found) - 1} more such layers or settings" if len(found) > 1 else ""
    depth = len(comparable_handle(model_a, "model_a").blocks)
    return (f"too small a difference to show here: {_located(found[0], depth)}{more}",)


def _of_numbers(report: Report | None, images: np.ndarray, place: Place) -> list[str]:
    """NaN and infinity."""
    if not np.isfinite(images).all():
        return ["the images are not all finite numbers"]
    if report is None or np.isfinite(report.outputs).all():
        return []
    broken = [n for n, o in zip("ab", report.outputs, strict=True) if not np.isfinite(o).all()]
    return [f"NaN or infinity in {' and '.join(broken)}, not before {place.where}"]


def _of_merging(
    report: Report | None, place: Place, model_a: Any, model_b: Any, tolerance: Tolerance
) -> list[str]:
    """What decisions and settings of the patch say."""
    a, b = comparable_handle(model_a, "model_a"), comparable_handle(model_b, "model_b")
    causes = []
    if place.half in ("decisions", "schedule") and a.protected != b.protected:
        few, many = sorted((a.protected, b.protected))
        who = "a" if a.protected == few else "b"
        which = f"token {few}" if many == few + 1 else f"tokens {few} to {many - 1}"
        causes.append(
            f"another number of protected tokens: {a.protected} in a, {b.protected} in b, so in layer "
            f"{place.layer} {who} may merge {which}, a class, distillation or register token"
        )
    if place.half == "decisions" and not causes and report is not None:
        flips = clear_flips(report, place.layer, tolerance)
        names = {"a": report.names[0], "b": report.names[1], "": "one of the two"}
        worst = max(flips, key=lambda flip: flip.gap)
        who = f"{worst.wrong} ({names[worst.wrong]})" if worst.wrong else "one of the two"
        if all(flip.tied for flip in flips):
            causes.append(
                f"an unstable sort in {who}: in layer {place.layer} decisions differ only among exact "
                "ties, which go to the first token"
            )
        elif worst.wrong:
            causes.append(f"the matching in {who}: its plan does not follow from its own keys")
    if place.half == "schedule" and a.r != b.r:
        causes.append(f"another r: {a.r} in a, {b.r} in b")
    return causes


def _of_attention(
    report: Report,
    place: Place,
    model_a: Any,
    model_b: Any,
    images: np.ndarray,
    tolerance: Tolerance,
) -> list[str]:
    """Proportional attention, if the models agree without it."""
    a, b = comparable_handle(model_a, "model_a"), comparable_handle(model_b, "model_b")
    first = min((layer.layer for layer in report.layers), default=None)
    if (
        first is None
        or place.layer is None
        or place.layer <= first
        or not (a.prop_attn or b.prop_attn)
    ):
        return []
    with a.with_prop_attn(False), b.with_prop_attn(False):
        if located(compare(model_a, model_b, images), tolerance, model_a) is not None:
            return []
    settings = f"prop_attn is {a.prop_attn} in a and {b.prop_attn} in b"
    if bool(a.prop_attn) == bool(b.prop_attn):
        settings += ", but one of them does not add log(size) to its attention scores"
    return [
        f"dropped proportional attention: {settings}; layer {place.layer} is the first to show it after "
        f"the merge in layer {first}, and without it in both they agree"
    ]


def _run_again(
    model_a: Any, model_b: Any, images: np.ndarray, tolerance: Tolerance
) -> Place | None:
    """Where the models part with r=0."""
    before = model_a.r, model_b.r
    try:
        model_a.r = model_b.r = 0
        return located(compare(model_a, model_b, images), tolerance, model_a)
    finally:
        model_a.r, model_b.r = before


def _number(place: Place, depth: int) -> int:
    if place.half == "embedding":
        return EMBEDDING
    return depth if place.layer is None else place.layer


def _located(finding: Finding, depth: int) -> str:
    if finding.layer == EMBEDDING:
        return f"before layer 0, {finding.text}"
    if finding.layer == depth:
        return f"after the last layer, {finding.text}"
    return f"in layer {finding.layer}, {finding.text}"


def _unknown(place: Place) -> str:
    if place.half == "undecided":
        return "rounding, in keys that are nearly equal; nothing was found to be wrong"
    if place.half == "decisions":
        return "rounding, if the score gap is that small; else keys that are computed differently"
    return (
        f"no setting and no weight that can be seen from outside; read what computes {place.where}"
    )
