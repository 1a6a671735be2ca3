"""The base of laws: tests that run for every case of their class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from adapters.cases import Case

__all__ = ["ForEachCase"]

#: Argument of a law -> the cases that it is for.
CHOICES: dict[str, Callable[[Case], bool]] = {
    "case": lambda case: True,
    "smooth": lambda case: not case.rounds,  # finite differences mean something
    "plain": lambda case: case.golden is not None,
}


class ForEachCase:
    """Base of all laws. A class named ``Test...`` below one of them says which models it is for.

    A law takes ``case``: each of :attr:`CASES`; ``smooth``: each that does not round to float32 on the way;
    or ``plain``: the plain ViT of each library, if the kind of model does not matter.
    """

    CASES: ClassVar[list[Case]]

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Called by pytest for each law of a class that it collects."""
        taken = [name for name in CHOICES if name in metafunc.fixturenames]
        if len(taken) != 1:
            raise pytest.UsageError(
                f"{metafunc.definition.nodeid} is in a class of laws and must take one of "
                f"{', '.join(CHOICES)}; it takes {', '.join(taken) or 'none'}"
            )
        chosen = [case for case in self.CASES if CHOICES[taken[0]](case)]
        if not chosen:
            raise pytest.UsageError(f"{metafunc.definition.nodeid} has no case to run for")
        metafunc.parametrize(taken[0], chosen, ids=lambda case: case.name)
