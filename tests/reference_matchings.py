"""Every matching in plain loops over one image: slow, obvious, and the judge. See ``reference``.

It imports nothing of the package. ``valid`` says which tokens are not padding; ``attention`` (N,) and
``values`` (H, N, D) are those of a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from reference import Plan, cosine


@dataclass
class Image:
    """The context of one image."""

    keys: np.ndarray
    x: np.ndarray
    attention: np.ndarray
    values: np.ndarray
    protected: int = 0
    valid: np.ndarray | None = None
    sizes: np.ndarray | None = None
    layer: int = 0
    num_layers: int = 1

    @property
    def patches(self) -> list[int]:
        return list(range(self.protected, len(self.keys)))

    def real(self, token: int) -> bool:
        return self.valid is None or bool(self.valid[token])

    def size(self, token: int) -> float:
        return 1.0 if self.sizes is None else float(self.sizes[token])


@dataclass
class Weighted:
    """A plan and its weights; None as in ``MergePlan``."""

    plan: Plan
    mean: list[float] | None = None
    share: list[float] | None = None
    keep_norm: bool = False


@dataclass
class Chosen:
    """The tokens that merge, in order, and the token that each goes to."""

    merged: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)

    def plan(self, kept: list[int]) -> Plan:
        return Plan(kept, self.merged, [kept.index(token) for token in self.targets])


def nearest(image: Image, vectors: np.ndarray, token: int, tokens: list[int]) -> tuple[int, float]:
    """The first of the most similar ``tokens``; real ones before padding."""
    candidates = [one for one in tokens if image.real(one)] or tokens
    similarities = [cosine(vectors[token], vectors[one]) for one in candidates]
    best = max(similarities)
    return candidates[similarities.index(best)], best


def strongest(image: Image, sources: list[int], destinations: list[int], amount: int) -> Chosen:
    """The ``amount`` sources that are most similar to a destination; padding comes first."""
    edges = []
    for token in sources:
        target, similarity = nearest(image, image.keys, token, destinations)
        edges.append((image.real(token), -similarity, token, target))
    edges = sorted(edges, key=lambda edge: edge[:2])[:amount]
    return Chosen([edge[2] for edge in edges], [edge[3] for edge in edges])


def into_nearest(
    image: Image, vectors: np.ndarray, merged: list[int], kept: list[int]
) -> tuple[Chosen, list[float]]:
    found = [nearest(image, vectors, token, kept) for token in merged]
    return Chosen(merged, [target for target, _ in found]), [one for _, one in found]


def ranked(image: Image, scores: list[float]) -> list[int]:
    """Patches from the highest to the lowest score; padding last, in its own order."""
    real = sorted(filter(image.real, image.patches), key=lambda token: -scores[token])
    return real + [token for token in image.patches if not image.real(token)]


def prefix(image: Image) -> list[int]:
    return list(range(image.protected))


def parities(image: Image) -> tuple[list[int], list[int]]:
    evens = [token for token in image.patches if token % 2 == 0]
    return evens, [token for token in image.patches if token % 2 == 1]


def tome(image: Image, r: int) -> Weighted:
    evens, odds = parities(image)
    everything = strongest(image, evens, odds, len(evens))
    chosen = Chosen(everything.merged[:r], everything.targets[:r])
    stay = everything.merged[r:]
    if image.protected:
        stay = sorted(stay)
    return Weighted(chosen.plan(prefix(image) + stay + odds))


def bidirectional(image: Image, r: int) -> Weighted:
    evens, odds = parities(image)
    chosen = strongest(image, evens, odds, math.ceil(r / 2))
    evens = [token for token in evens if token not in chosen.merged]
    free = [token for token in odds if token not in chosen.targets]
    back = strongest(image, free, evens, r // 2)
    odds = [token for token in odds if token not in back.merged]
    both = Chosen(chosen.merged + back.merged, chosen.targets + back.targets)
    return Weighted(both.plan(prefix(image) + evens + odds))


def tome_cis(image: Image, r: int) -> Weighted:
    weights = []
    for token, attention in enumerate(image.attention):
        mean = sum(head[token] for head in image.values) / len(image.values)
        weights.append(attention * math.sqrt(sum(v * v for v in mean)))
    return Weighted(tome(image, r).plan, mean=weights)


def diffrate(image: Image, r: int, prune: float = 0.0) -> Weighted:
    order = ranked(image, list(image.attention))
    kept = sorted(order[:-r])
    chosen, similarities = into_nearest(image, image.x, order[-r:], kept)
    share = [
        max(0.0, one) if image.real(target) else 0.0
        for one, target in zip(similarities, chosen.targets, strict=True)
    ]
    mean = [1.0] * len(image.keys)
    for number in range(r - math.floor(prune * r + 0.5), r):
        share[number] = mean[chosen.merged[number]] = 0.0
    return Weighted(chosen.plan(prefix(image) + kept), mean, share)


def evit(image: Image, r: int) -> Weighted:
    order = ranked(image, list(image.attention))
    fused = order[-r - 1]
    chosen = Chosen(order[-r:], [fused] * r)
    return Weighted(chosen.plan(prefix(image) + sorted(order[:-r])), mean=list(image.attention))


def pitome(image: Image, r: int, form: str = "bsm", margin: float | None = None) -> Weighted:
    if margin is None:
        margin = 0.9 - 0.9 * image.layer / image.num_layers
    energies = [0.0] * len(image.keys)
    for token in image.patches:
        for other in image.patches:
            if other != token and image.real(other):
                above = cosine(image.keys[token], image.keys[other]) - margin
                energies[token] += above if above > 0 else math.exp(above) - 1
    padding = [token for token in image.patches if not image.real(token)]
    order = padding + [token for token in ranked(image, energies) if image.real(token)]
    shared = len(order) if form == "bsm" else 2 * r
    first, second = order[0:shared:2], order[1:shared:2]
    room = len(first)
    sides = sorted(first + second, key=image.real)
    first, second = sides[:room], sides[room:]
    if form == "pure":
        chosen, _ = into_nearest(image, image.keys, first, second)
    else:
        chosen = strongest(image, first, second, r)
    kept = sorted(set(image.patches) - set(chosen.merged))
    return Weighted(chosen.plan(prefix(image) + kept))


def dropped(image: Image, plan: Plan) -> tuple[list[float], list[float]]:
    """Weights that drop what merges, unless it merges into padding."""
    weights = [1.0] * len(image.keys)
    for token, slot in zip(plan.merged, plan.into, strict=True):
        weights[token] = 0.0 if image.real(plan.kept[slot]) else 1.0
    return weights, [weights[token] for token in plan.merged]


def tofu(image: Image, r: int, prune_layers: int | None = None) -> Weighted:
    found = tome(image, r)
    early = image.num_layers // 2 if prune_layers is None else prune_layers
    if image.layer >= early:
        return Weighted(found.plan, keep_norm=True)
    return Weighted(found.plan, mean=dropped(image, found.plan)[0])


def drop_similar(image: Image, r: int, keep_size: bool = True) -> Weighted:
    plan = tome(image, r).plan
    mean, share = dropped(image, plan)
    return Weighted(plan, mean, None if keep_size else share)


def ppt(image: Image, r: int, threshold: float = 7e-5) -> Weighted:
    scores = []
    for token, attention in enumerate(image.attention):
        scores.append(attention * math.sqrt(sum(v * v for v in image.values[:, token].ravel())))
    sizes = [image.size(token) for token in range(len(scores))]
    real = [scores[token] for token in image.patches if image.real(token)]
    total = sum(real) or 1.0
    mean = sum(real) / total / max(1, len(real))
    variance = sum((one / total - mean) ** 2 for one in real) / max(1, len(real) - 1)
    if variance < threshold:
        return Weighted(tome(image, r).plan, sizes, [1.0] * r)
    order = ranked(image, scores)
    kept = sorted(order[:-r])
    chosen, _ = into_nearest(image, image.keys, order[-r:], kept)
    weights = [0.0 if token in chosen.merged else size for token, size in enumerate(sizes)]
    return Weighted(chosen.plan(prefix(image) + kept), weights, [0.0] * r)


def kth(image: Image, r: int, k: int = 2) -> Weighted:
    k = min(k, len(image.patches))
    destinations = image.patches[k - 1 :: k]
    sources = [token for token in image.patches if token not in destinations]
    chosen = strongest(image, sources, destinations, r)
    kept = [token for token in image.patches if token not in chosen.merged]
    return Weighted(chosen.plan(prefix(image) + kept))


def random(image: Image, r: int, seed: int = 0) -> Weighted:
    generator = np.random.default_rng([seed, image.layer])
    order = [image.protected + int(one) for one in generator.permutation(len(image.patches))]
    order = sorted(order, key=image.real)
    kept = sorted(order[r:])
    chosen, _ = into_nearest(image, image.keys, order[:r], kept)
    return Weighted(chosen.plan(prefix(image) + kept))


def merge(found: Weighted, x: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, C) and (N,) -> the tokens (n, C) and the sizes (n,) after a merge with these weights."""
    share = [1.0] * len(found.plan.merged) if found.share is None else found.share
    gains = dict(zip(found.plan.merged, share, strict=True))
    mean = size if found.mean is None else np.where(size > 0, found.mean, 0)
    out, sizes = [], []
    for group in found.plan.groups():
        own, *others = group
        sizes.append(size[own] + sum(size[token] * gains[token] for token in others))
        total = sum(mean[token] for token in group)
        row = sum(mean[token] * x[token] for token in group) / total if total else x[own]
        weighing = [token for token in group if mean[token] > 0]
        if found.keep_norm and any(token in weighing for token in others):
            length = math.sqrt(sum(v * v for v in row))
            longest = max(math.sqrt(sum(v * v for v in x[token])) for token in weighing)
            row = row * (longest / length) if length else row
        out.append(row)
    return np.array(out), np.array(sizes)
