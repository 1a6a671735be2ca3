"""Compare two patched models layer by layer: decisions first, numbers where the decisions agree.

Merging is a decision, and two correct programs may decide differently where two similarities differ
by rounding. From there on an image takes another way in each model, so comparing its numbers says
nothing. A report therefore follows each image to its first differing decision and shows how close the
call was: the gap between the similarities, in the keys of the first model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tomecore._plan import MergePlan
from tomecore.adapters._config import Config
from tomecore.adapters._patch import config_of
from tomecore.backends import Array
from tomecore.errors import ArgumentValueError, NotPatchedError
from tomecore.running import framework_of, predict, to_numpy

__all__ = ["LayerReport", "Report", "compare"]


@dataclass(frozen=True)
class LayerReport:
    """One layer that merged.

    Args:
        layer: its number, from 0.
        merged: tokens merged here.
        images: images whose decisions agreed up to here.
        identical_decisions: share of their tokens that went to the same slot, 0 to 1.
        identical_sizes: share of slots with equal sizes, over images that still agree.
        largest_difference: of the merged tokens, over images that still agree.
        gaps: for each image that first disagrees here, how far apart the similarities were that were
            decided differently; a rounding-sized gap is a near-tie.
    """

    layer: int
    merged: int
    images: int
    identical_decisions: float
    identical_sizes: float
    largest_difference: float
    gaps: tuple[float, ...]


@dataclass(frozen=True)
class Report:
    """Two models on the same images.

    Args:
        names: what the two models are called.
        images: how many images.
        layers: one report per layer that merged.
        identical_decisions: share of images whose decisions agreed in every layer.
        identical_predictions: share of images with the same largest output.
        largest_difference: of the outputs, over all images.
        largest_difference_agreeing: of the outputs, over images whose decisions agreed.
        outputs: what the two models returned, NumPy; not part of :meth:`as_dict`.
    """

    names: tuple[str, str]
    images: int
    layers: tuple[LayerReport, ...]
    identical_decisions: float
    identical_predictions: float
    largest_difference: float
    largest_difference_agreeing: float
    outputs: tuple[np.ndarray, np.ndarray] = field(repr=False)

    @property
    def largest_gap(self) -> float:
        """The clearest call that was decided differently; 0 if none was."""
        return max((gap for layer in self.layers for gap in layer.gaps), default=0.0)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        plain = {name: value for name, value in asdict(self).items() if name != "outputs"}
        return {**plain, "largest_gap": self.largest_gap}

    def __str__(self) -> str:
        lines = [
            f"{self.names[0]} against {self.names[1]}, {self.images} images",
            "layer  merged  images  same decisions  same sizes  largest difference  first disagreements",
        ]
        for at in self.layers:
            gaps = ", ".join(f"gap {gap:.1e}" for gap in at.gaps[:3])
            more = f" and {len(at.gaps) - 3} more" if len(at.gaps) > 3 else ""
            lines.append(
                f"{at.layer:5d}  {at.merged:6d}  {at.images:6d}  {at.identical_decisions:14.2%}  "
                f"{at.identical_sizes:10.2%}  {at.largest_difference:18.1e}  {gaps or '-'}{more}"
            )
        lines.append(
            f"outputs: largest difference {self.largest_difference:.1e} "
            f"({self.largest_difference_agreeing:.1e} where all decisions agree); "
            f"identical decisions {self.identical_decisions:.2%}, "
            f"identical predictions {self.identical_predictions:.2%}"
        )
        return "\n".join(lines)


@dataclass
class _Merge:
    """What one model did in one layer, over all images."""

    keys: list[np.ndarray]
    slots: list[np.ndarray]
    kept: list[np.ndarray]
    merged: list[np.ndarray]
    sizes: list[np.ndarray]
    x: list[np.ndarray]

    def joined(self, name: str) -> np.ndarray:
        return np.concatenate(getattr(self, name))


def compare(model_a: Any, model_b: Any, images: np.ndarray, *, batch: int = 64) -> Report:
    """Run two patched models on the same images and report where they agree.

    Args:
        model_a: a patched model of any framework; its keys measure the gaps.
        model_b: another, with as many layers and the same schedule. Both run in evaluation mode.
        images: (n, C, H, W) NumPy; each model gets them in the dtype of its weights.
        batch: images per forward pass.

    Raises:
        NotPatchedError: a model is not patched.
        ArgumentValueError: the models merge in different layers or different amounts.
    """
    merges_a, output_a = _observe(model_a, images, batch, "model_a")
    merges_b, output_b = _observe(model_b, images, batch, "model_b")
    amounts = [
        {k: m.merged[0].shape[1] for k, m in merges.items()} for merges in (merges_a, merges_b)
    ]
    if amounts[0] != amounts[1]:
        raise ArgumentValueError(
            f"the models merge differently: tokens by layer {amounts[0]} against {amounts[1]}; "
            "give both the same r, depth and protected tokens"
        )
    agree = np.ones(len(images), dtype=bool)
    layers = []
    for number, a in merges_a.items():
        report, agree = _compare_layer(number, a, merges_b[number], agree)
        layers.append(report)
    difference = np.abs(output_a.astype(np.float64) - output_b.astype(np.float64))
    return Report(
        names=(_name(model_a), _name(model_b)),
        images=len(images),
        layers=tuple(layers),
        identical_decisions=float(agree.mean()),
        identical_predictions=float((output_a.argmax(-1) == output_b.argmax(-1)).mean()),
        largest_difference=float(difference.max()),
        largest_difference_agreeing=float(difference[agree].max(initial=0.0)),
        outputs=(output_a, output_b),
    )


def _observe(
    model: Any, images: np.ndarray, batch: int, name: str
) -> tuple[dict[int, _Merge], np.ndarray]:
    config: Config | None = config_of(model)
    if config is None:
        raise NotPatchedError(
            f"`{name}` ({type(model).__name__}) is not patched; call apply_patch first"
        )
    found: dict[int, _Merge] = {}

    def observer(layer: int, key: Array, plan: MergePlan, sizes: Array, x: Array) -> None:
        merge = found.setdefault(layer, _Merge([], [], [], [], [], []))
        merge.keys.append(to_numpy(key))
        merge.slots.append(to_numpy(plan.slots))
        merge.kept.append(to_numpy(plan.kept))
        merge.merged.append(to_numpy(plan.merged))
        merge.sizes.append(to_numpy(sizes))
        merge.x.append(to_numpy(x))

    config.observer = observer
    try:
        output = predict(model, images, batch)
    finally:
        config.observer = None
    return found, output


def _compare_layer(
    number: int, a: _Merge, b: _Merge, agree: np.ndarray
) -> tuple[LayerReport, np.ndarray]:
    slots_a, slots_b = a.joined("slots"), b.joined("slots")
    same = (slots_a == slots_b).all(1)
    first = np.flatnonzero(agree & ~same)
    still = agree & same
    sizes = a.joined("sizes")[still] == b.joined("sizes")[still]
    difference = np.abs(a.joined("x")[still].astype(np.float64) - b.joined("x")[still])
    keys, kept, merged = (
        a.joined("keys"),
        (a.joined("kept"), b.joined("kept")),
        (
            a.joined("merged"),
            b.joined("merged"),
        ),
    )
    gaps = tuple(
        _gap(
            keys[i],
            (kept[0][i], kept[1][i]),
            (merged[0][i], merged[1][i]),
            (slots_a[i], slots_b[i]),
        )
        for i in first
    )
    report = LayerReport(
        layer=number,
        merged=merged[0].shape[1],
        images=int(agree.sum()),
        identical_decisions=float((slots_a == slots_b)[agree].mean()) if agree.any() else 1.0,
        identical_sizes=float(sizes.mean()) if sizes.size else 1.0,
        largest_difference=float(difference.max(initial=0.0)),
        gaps=gaps,
    )
    return report, still


def _gap(
    keys: np.ndarray,
    kept: tuple[np.ndarray, np.ndarray],
    merged: tuple[np.ndarray, np.ndarray],
    slots: tuple[np.ndarray, np.ndarray],
) -> float:
    """How far apart the similarities were that two plans for one image decided differently."""
    keys = keys.astype(np.float64)
    norm = np.linalg.norm(keys, axis=1, keepdims=True)
    keys = keys / np.where(norm > 0, norm, 1)
    cosine = keys @ keys.T

    def partners(plan: int) -> dict[int, int]:
        """merged token -> the token it was merged into."""
        return {int(t): int(kept[plan][slots[plan][t]]) for t in merged[plan]}

    into = partners(0), partners(1)
    best = {t: cosine[t, p] for plan in into for t, p in plan.items()}
    gaps = [abs(cosine[t, into[0][t]] - cosine[t, into[1][t]]) for t in into[0] if t in into[1]]
    only = [[best[t] for t in into[p] if t not in into[1 - p]] for p in (0, 1)]
    if only[0] and only[1]:
        gaps.append(max(map(max, only)) - min(map(min, only)))
    if into[0].keys() == into[1].keys() and not (kept[0] == kept[1]).all():
        # the same tokens stay in another order: unprotected tokens are kept by similarity
        odd = cosine[:, 1::2].max(1)
        gaps.append(float(np.abs(odd[kept[0]] - odd[kept[1]]).max()))
    return float(max(gaps, default=0.0))


def _name(model: Any) -> str:
    return f"{framework_of(model)} {type(model).__name__}"
