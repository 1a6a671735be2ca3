"""Find where two models diverge, and the likely cause, for ``assert_parity`` and ``tomecore parity``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tomecore.adapters import handle_of, is_patched
from tomecore.errors import NotPatchedError
from tomecore.loading import merging
from tomecore.parity._causes import Case, differing_settings, likely_causes
from tomecore.parity._compare import DifferentMergesError, compare
from tomecore.parity._divergence import Divergence, first_divergence
from tomecore.parity._report import Report
from tomecore.parity._tolerance import Tolerance
from tomecore.schedule import R, as_data

__all__ = ["Diagnosis", "assert_parity", "diagnose"]


@dataclass(frozen=True)
class Diagnosis:
    """Whether two models agree; if not, where they diverge and why.

    Args:
        r: the schedule.
        tolerance: the differences that count as rounding.
        report: all numbers; None if the models merge different amounts.
        place: the first place where they differ by more than rounding; None if they agree.
        causes: likely causes, the likeliest first.
        remarks: further findings.
    """

    r: R
    tolerance: Tolerance
    report: Report | None
    place: Divergence | None
    causes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        return self.place is None

    @property
    def layer(self) -> int | None:
        """The first diverging layer; None if the models agree, or diverge outside their layers."""
        return None if self.place is None else self.place.layer

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON."""
        return {
            "agrees": self.agrees,
            "r": as_data(self.r),
            "layer": self.layer,
            "where": None if self.place is None else self.place.where,
            "causes": list(self.causes),
            "remarks": list(self.remarks),
            "tolerance": asdict(self.tolerance),
            "report": None if self.report is None else self.report.as_dict(),
        }

    def __str__(self) -> str:
        report: Any = self.report  # None only where a place says why
        lines = []
        if report is not None:
            lines.append(
                f"a = {report.names[0]}, b = {report.names[1]}; {report.images} "
                f"{'image' if report.images == 1 else 'images'}, "
                f"r={self.r}, {self.tolerance}"
            )
        if self.place is None:
            lines.append(
                f"They agree: outputs within {report.largest_difference_agreeing:.1e}; all decisions "
                f"equal for {report.identical_decisions:.1%} of the images, predictions for "
                f"{report.identical_predictions:.1%}"
            )
            lines += _near_ties(report) + [f"But: {remark}." for remark in self.remarks]
            return "\n".join(lines + report.table())
        lines.append(f"{self.place}.")
        lines += [f"Likely cause: {cause}." for cause in self.causes[:2]]
        if len(self.causes) > 2:
            lines.append(
                f"Also: {len(self.causes) - 2} more settings or weights differ up to there."
            )
        lines += [f"Also: {remark}." for remark in self.remarks]
        lines.append(f"Look next at {self.place.look}.")
        if report is not None:
            lines += report.table(self.place.layer, rows=4)
        return "\n".join(lines)


def diagnose(
    model_a: Any,
    model_b: Any,
    images: np.ndarray,
    *,
    r: R | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    gap: float | None = None,
    batch: int = 16,
) -> Diagnosis:
    """Compare two models layer by layer, and find where they diverge and why.

    Use float64 to tell a fault from rounding: in float32 an epsilon of 1e-5 in place of 1e-6 is
    smaller than the rounding of a deep model.

    Args:
        model_a: a model; with ``r``, it need not be patched and is afterwards as it was.
        model_b: another one, of the same or another framework.
        images: (n, C, H, W) NumPy, as the models take them.
        r: the schedule of both; None: each model, already patched, keeps its own.
        rtol: allowed difference, relative to the largest element of the array of ``model_a``. None: it
            depends on the dtype of the weights, the less precise one if they differ: 1e-9 in float64,
            1e-4 in float32, 2e-2 in float16, 1e-1 in bfloat16.
        atol: allowed difference that is added to that. None: 1e-12, 1e-6, 1e-3, 1e-2.
        gap: largest gap between two similarities for which rounding excuses a decision that differs; an
            exact tie that is decided differently is never excused. None: the same as ``rtol``.
        batch: images per forward pass.

    Raises:
        NotPatchedError: a model is not patched and no ``r`` is given.
        ArgumentValueError: there are no images, or the models have different architectures.
        UnsupportedModelError: a model cannot be patched, or its layers cannot be compared.
    """
    tolerance = Tolerance.between(model_a, model_b, rtol, atol, gap)
    for model, name in ((model_a, "model_a"), (model_b, "model_b")):
        if r is None and not is_patched(model):
            raise NotPatchedError(
                f"`{name}` ({type(model).__name__}) is not patched and no `r` is given; give r=8, or "
                "call apply_patch first and set its r"
            )
    with merging(model_a, r), merging(model_b, r):
        shown = model_a.r
        report: Report | None
        place: Divergence | None
        try:
            report = compare(model_a, model_b, images, batch=batch)
        except DifferentMergesError as error:
            report, place = None, Divergence.of_schedules(*error.tokens)
        else:
            place = first_divergence(report, tolerance, handle_of(model_a).layers)
        if place is None:
            return Diagnosis(
                shown, tolerance, report, None, (), differing_settings(model_a, model_b)
            )
        case = Case((model_a, model_b), images, tolerance, report, place)
        return Diagnosis(shown, tolerance, report, place, *likely_causes(case))


def assert_parity(
    model_a: Any,
    model_b: Any,
    images: np.ndarray,
    *,
    r: R | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    gap: float | None = None,
    batch: int = 16,
) -> Report:
    """Assert, in a test, that two models agree except for rounding; for arguments see :func:`diagnose`.

    Returns:
        The report, for further assertions.

    Raises:
        AssertionError: they diverge; the message names the layer, the half of it, and the likely cause.
    """
    __tracebackhide__ = True  # pytest then shows the message, not this function
    found = diagnose(model_a, model_b, images, r=r, rtol=rtol, atol=atol, gap=gap, batch=batch)
    if found.report is None or not found.agrees:
        raise AssertionError(str(found))
    return found.report


def _near_ties(report: Report) -> list[str]:
    flips = report.flips
    lines = [f"  near-tie, decided differently by rounding: {flip}" for flip in flips[:2]]
    return lines + ([f"  and {len(flips) - 2} more images"] if len(flips) > 2 else [])
