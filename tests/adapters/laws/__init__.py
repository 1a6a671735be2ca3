"""The laws: tests that hold for every model. A family line in a list of cases puts a model under all of them.

A method ``test_...`` of a class below is a law, and runs without registration. :class:`Laws` need no
knowledge of a block; :class:`LawsOfPlainViTs` know the anatomy of a plain one; :class:`LawsOfSpecs` depend on
the spec only, so one model of each is enough.
"""

from __future__ import annotations

from adapters.laws.changes import Changes
from adapters.laws.exactness import Exactness
from adapters.laws.gradients import Gradients
from adapters.laws.halves import Halves
from adapters.laws.lifecycle import Lifecycle
from adapters.laws.outputs import Outputs
from adapters.laws.passes import Passes
from adapters.laws.plain_blocks import PlainBlocks
from adapters.laws.plain_models import PlainModels
from adapters.laws.state import State

__all__ = ["Laws", "LawsOfPlainViTs", "LawsOfSpecs"]


class Laws(Exactness, Outputs, Gradients, Lifecycle, State):
    """For every model."""


class LawsOfPlainViTs(Laws, PlainBlocks, PlainModels):
    """For models whose blocks are those of a plain ViT: these laws, and all others."""


class LawsOfSpecs(Changes, Halves, Passes):
    """For one model of every spec: changes have their effect or are refused, and no field is forgotten."""
