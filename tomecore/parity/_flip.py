"""A merge that two models decided differently: its score gap, and which plan contradicts its own keys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tomecore.matching.bipartite import bipartite_soft_matching
from tomecore.parity._trace import Merge

__all__ = ["Flip", "flip"]


@dataclass(frozen=True)
class Flip:
    """The first decision of one image that differs.

    Args:
        image: number of the image, from 0.
        layer: number of the layer.
        gap: gap between the similarities that were decided differently, in the keys of a.
        gap_b: the same in the keys of b. Both are 0 for an exact tie.
        wrong: "a" or "b", if only its plan does not follow from its own keys by tomecore's rules;
            "" if neither or both do not.
        decided: what each model decided, in words.
    """

    image: int
    layer: int
    gap: float
    gap_b: float
    wrong: str
    decided: str

    @property
    def tied(self) -> bool:
        """Whether the similarities were equal in both models, so that rounding does not excuse the flip."""
        return self.gap == 0 == self.gap_b

    def __str__(self) -> str:
        gap = "an exact tie" if self.tied else f"score gap {self.gap:.1e}"
        return f"image {self.image}, layer {self.layer}: {self.decided} ({gap})"


def flip(
    image: int, layer: int, merges: tuple[Merge, Merge], row: int, protected: tuple[int, int]
) -> Flip:
    """Describe what two models decided for one image.

    Args:
        image: number of the image, for messages.
        layer: number of the layer, for messages.
        merges: the merges of a and of b in this layer.
        row: row of the image in both merges.
        protected: number of prefix tokens that each model never merges.
    """
    plans = [_Plan(merge, row) for merge in merges]
    cosines = [_cosine(merge.keys[row]) for merge in merges]
    follows = [
        _follows(merge, row, number) for merge, number in zip(merges, protected, strict=True)
    ]
    wrong = {(False, True): "a", (True, False): "b"}.get((follows[0], follows[1]), "")
    return Flip(
        image=image,
        layer=layer,
        gap=_gap(cosines[0], plans[0], plans[1]),
        gap_b=_gap(cosines[1], plans[0], plans[1]),
        wrong=wrong,
        decided=_decision(cosines[0], plans[0], plans[1]),
    )


class _Plan:
    """The merge of one image: where each token went."""

    def __init__(self, merge: Merge, row: int) -> None:
        self.kept = merge.kept[row]
        slots = merge.slots[row]
        self.into = {int(t): int(self.kept[slots[t]]) for t in merge.merged[row]}


def _cosine(keys: np.ndarray) -> np.ndarray:
    """Return (N, N) float64. Equal keys have equal similarities, to the last bit, in every position."""
    distinct, inverse = np.unique(keys.astype(np.float64), axis=0, return_inverse=True)
    norm = np.linalg.norm(distinct, axis=1, keepdims=True)
    distinct = distinct / np.where(norm > 0, norm, 1)
    inverse = inverse.reshape(-1)
    cosine: np.ndarray = (distinct @ distinct.T)[np.ix_(inverse, inverse)]
    return cosine


def _follows(merge: Merge, row: int, protected: int) -> bool:
    """Whether the plan is the one that NumPy's matching computes from the model's own keys."""
    keys, amount = merge.keys[row : row + 1], merge.merged.shape[1]
    plan = bipartite_soft_matching(keys, amount, protected=protected)
    return bool(np.array_equal(plan.slots[0], merge.slots[row]))


def _gap(cosine: np.ndarray, a: _Plan, b: _Plan) -> float:
    best = {t: cosine[t, p] for plan in (a, b) for t, p in plan.into.items()}
    gaps = [abs(cosine[t, a.into[t]] - cosine[t, b.into[t]]) for t in a.into if t in b.into]
    only_a, only_b = ([best[t] for t in p.into if t not in q.into] for p, q in ((a, b), (b, a)))
    if only_a and only_b:
        gaps.append(max(*only_a, *only_b) - min(*only_a, *only_b))
    if a.into.keys() == b.into.keys() and not (a.kept == b.kept).all():
        # The same tokens stay, in another order: unprotected tokens are kept by similarity.
        odd = cosine[:, 1::2].max(1)
        gaps.append(float(np.abs(odd[a.kept] - odd[b.kept]).max()))
    return float(max(gaps, default=0.0))


def _decision(cosine: np.ndarray, a: _Plan, b: _Plan) -> str:
    """Return the clearest difference between two plans, in words, with similarities in the keys of a."""

    def describe_merge(token: int, plan: _Plan) -> str:
        partner = plan.into[token]
        return f"token {token} into {partner} at {cosine[token, partner]:.7g}"

    only = [[t for t in p.into if t not in q.into] for p, q in ((a, b), (b, a))]
    if only[0] and only[1]:
        return f"a merges {describe_merge(only[0][0], a)}, b merges {describe_merge(only[1][0], b)}"
    both = [t for t in a.into if a.into[t] != b.into[t]]
    if both:
        token = max(both, key=lambda t: abs(cosine[t, a.into[t]] - cosine[t, b.into[t]]))
        return f"a merges {describe_merge(token, a)}, b {describe_merge(token, b)}"
    return "the same merges, in another order"
