"""Real models, built small with random weights: one list per library, one line per kind of model.

Each ``of_<library>.py`` in this folder has such lists. A line in ``PLAIN`` puts a model under
``LawsOfPlainViTs``, some of which know the anatomy of a plain ViT's block; a line in ``MORE`` under ``Laws``,
which hold for any. ``SINGLE`` is for models that compute in float32 whatever their weights are.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from adapters.cases import Case

__all__ = ["LISTS", "MORE", "PLAIN", "SINGLE", "case_named"]

#: Name of a list -> the cases of all libraries.
LISTS: dict[str, list[Case]] = {"PLAIN": [], "MORE": [], "SINGLE": []}

for _file in sorted(Path(__file__).parent.glob("of_*.py")):
    _library = importlib.import_module(f"vits.{_file.stem}")
    for _name, _cases in LISTS.items():
        _cases.extend(getattr(_library, _name, []))

PLAIN, MORE, SINGLE = LISTS.values()


def case_named(name: str) -> Case:
    return next(case for case in [*PLAIN, *MORE] if case.name == name)
