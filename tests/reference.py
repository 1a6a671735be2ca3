"""Token Merging as in the paper, in plain loops over plain lists: slow and obvious, as a reference.

Written from section 3 and appendix D of "Token Merging: Your ViT But Faster" (Bolya et al., ICLR 2023)
and from the package's rules for order, ties and clamps. It imports nothing from the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class Plan:
    """One sample: slot j starts from token ``kept[j]``; token ``merged[i]`` goes to slot ``into[i]``."""

    kept: list[int]
    merged: list[int]
    into: list[int]

    def groups(self) -> list[list[int]]:
        """The tokens of every slot, the one it starts from first."""
        groups = [[token] for token in self.kept]
        for token, slot in zip(self.merged, self.into, strict=True):
            groups[slot].append(token)
        return groups

    def slots(self) -> list[int]:
        """The slot of every token."""
        where = [-1] * (len(self.kept) + len(self.merged))
        for slot, tokens in enumerate(self.groups()):
            for token in tokens:
                where[token] = slot
        return where


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The similarity of two keys; 0 if one of them has no direction."""
    length = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
    return sum(v * w for v, w in zip(a, b, strict=True)) / length if length else 0.0


def most_similar(keys: np.ndarray, token: int, candidates: list[int]) -> tuple[int, float]:
    """The place in ``candidates`` of the token most similar to ``token``; ties go to the first."""
    best, best_similarity = 0, -math.inf
    for place, candidate in enumerate(candidates):
        similarity = cosine(keys[token], keys[candidate])
        if similarity > best_similarity:
            best, best_similarity = place, similarity
    return best, best_similarity


def identity(tokens: int) -> Plan:
    return Plan(list(range(tokens)), [], [])


def bipartite(keys: np.ndarray, r: int, protected: int = 0) -> Plan:
    """Alternate the tokens into two sets; merge the r strongest edges from the even to the odd one."""
    tokens = len(keys)
    r = min(r, (tokens - protected) // 2)
    if r <= 0:
        return identity(tokens)
    even = [token for token in range(protected, tokens) if token % 2 == 0]
    odd = [token for token in range(protected, tokens) if token % 2 == 1]
    edges = []
    for token in even:
        place, similarity = most_similar(keys, token, odd)
        edges.append((token, place, similarity))
    strongest_first = sorted(edges, key=lambda edge: -edge[2])
    merged, unmerged = strongest_first[:r], strongest_first[r:]
    unmerged_tokens = [token for token, _, _ in unmerged]
    if protected:
        unmerged_tokens.sort()
    before_odd = list(range(protected)) + unmerged_tokens
    return Plan(
        kept=before_odd + odd,
        merged=[token for token, _, _ in merged],
        into=[len(before_odd) + place for _, place, _ in merged],
    )


def kth(keys: np.ndarray, k: int, protected: int = 0) -> Plan:
    """Every k-th token is a destination for all others; what is left after the last group stays."""
    tokens = len(keys)
    if k <= 1 or tokens - protected < k:
        return identity(tokens)
    destinations, sources = [], []
    first = protected
    while first + k <= tokens:
        members = list(range(first, first + k))
        sources += members[:-1]
        destinations.append(members[-1])
        first += k
    front, tail = list(range(protected)), list(range(first, tokens))
    into = [protected + most_similar(keys, token, destinations)[0] for token in sources]
    return Plan(front + destinations + tail, sources, into)


def random(keys: np.ndarray, r: int, permutation: list[int], protected: int = 0) -> Plan:
    """The first r tokens of a permutation merge, each into the most similar of the others.

    The permutation is of the tokens after the protected ones, counted from 0.
    """
    r = min(r, len(keys) - protected - 1)
    if r <= 0:
        return identity(len(keys))
    free = [protected + place for place in permutation]
    sources, destinations = free[:r], free[r:]
    into = [protected + most_similar(keys, token, destinations)[0] for token in sources]
    return Plan(list(range(protected)) + destinations, sources, into)


def partition(
    keys: np.ndarray, sources: list[int], destinations: list[int], r: int | None = None
) -> Plan:
    """The r sources most similar to a destination merge into it; all tokens that stay keep their order."""
    edges = []
    for place, token in enumerate(sources):
        best, similarity = most_similar(keys, token, destinations)
        edges.append((place, token, destinations[best], similarity))
    if r is not None:
        strongest_first = sorted(edges, key=lambda edge: -edge[3])
        edges = sorted(strongest_first[:r])
    merged = [token for _, token, _, _ in edges]
    kept = [token for token in range(len(keys)) if token not in merged]
    return Plan(kept, merged, [kept.index(destination) for _, _, destination, _ in edges])


def grid(
    height: int, width: int, cell: tuple[int, int], place: list[list[int]] | None = None
) -> tuple[list[int], list[int]]:
    """Sources and destinations of a grid: ``place[i][j]`` counts the tokens of cell (i, j) row by row."""
    destinations = []
    for i in range(height // cell[0]):
        for j in range(width // cell[1]):
            chosen = 0 if place is None else place[i][j]
            row, column = i * cell[0] + chosen // cell[1], j * cell[1] + chosen % cell[1]
            destinations.append(row * width + column)
    sources = [token for token in range(height * width) if token not in destinations]
    return sources, sorted(destinations)


def merge(plan: Plan, x: np.ndarray, reduce: str) -> np.ndarray:
    """(N, C) -> (n, C), every token counting once."""
    combine = {"sum": np.sum, "mean": np.mean, "max": np.max}[reduce]
    return np.array([combine([x[token] for token in group], axis=0) for group in plan.groups()])


def merge_weighted(plan: Plan, x: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, C) and (N,) -> the size-weighted means (n, C) and the sizes (n,)."""
    means, sizes = [], []
    for group in plan.groups():
        total = sum(float(size[token]) for token in group)
        means.append(sum(float(size[token]) * x[token] for token in group) / total)
        sizes.append(total)
    return np.array(means), np.array(sizes)


def unmerge(plan: Plan, y: np.ndarray) -> np.ndarray:
    """(n, C) -> (N, C): every token gets the value of its slot."""
    return np.array([y[slot] for slot in plan.slots()])


def compose(source: list[int], plan: Plan) -> list[int]:
    """The slot of every original token, from the token that held it before the merge."""
    return [plan.slots()[token] for token in source]
