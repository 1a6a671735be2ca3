"""Fixtures: the array libraries the tests run on, and the golden numbers.

Test files import nothing from here (there is a second conftest in ``tests/integration``); what they
import is in ``libraries.py`` and ``reference.py``.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from libraries import LIBRARIES, Library

import tomecore
from tomecore import backends

# pytest-xdist sets the width of its own terminal in each process, and rich keeps the first that it reads.
os.environ.pop("COLUMNS", None)

GOLDEN = Path(__file__).parent / "golden"

# Asserts in files that are imported by tests show their values as those of test files do.
pytest.register_assert_rewrite("adapters.laws", "adapters.ways")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="plain ViTs only, and no graphs")
    parser.addoption(
        "--list-warnings",
        action="store_true",
        help="list the warnings of other libraries instead of failing; tomecore's own still fail",
    )


def pytest_configure(config: pytest.Config) -> None:
    """In environments that are not locked, a new deprecation of a library is not a failure."""
    if config.getoption("list_warnings"):
        config.addinivalue_line("filterwarnings", "default")
        for name, kind in vars(tomecore.errors).items():
            if isinstance(kind, type) and issubclass(kind, Warning):
                config.addinivalue_line("filterwarnings", f"error::tomecore.errors.{name}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--fast``, leave out tests marked "graph", and those of other models than a plain ViT."""
    if not config.getoption("fast"):
        return
    chosen = [
        item
        for item in items
        if item.get_closest_marker("graph") is None
        and all(is_plain(value) for value in parameters(item))
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


def parameters(item: pytest.Item) -> list[Any]:
    """Return the parameters of a test, from its marks and its fixtures."""
    call = getattr(item, "callspec", None)
    return list(call.params.values()) if call else []


def is_plain(value: Any) -> bool:
    """Whether a parameter is the case that the golden files describe, or not a model case."""
    return type(value).__name__ != "Case" or value.golden is not None


@pytest.fixture(params=LIBRARIES.values(), ids=repr)
def library(request: pytest.FixtureRequest) -> Library:
    """Each array library in turn; NumPy's arrays are read-only."""
    return request.param


@pytest.fixture(params=[lib for lib in LIBRARIES.values() if lib.gradient], ids=repr)
def differentiable(request: pytest.FixtureRequest) -> Library:
    """Each library with gradients: ``gradient(function, x)`` is d sum(function(x)) / dx."""
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def clean_registry() -> Iterator[None]:
    """Forget afterwards what a test registered."""
    known, by_type = dict(backends._known), dict(backends._by_type)
    yield
    for table, before in ((backends._known, known), (backends._by_type, by_type)):
        table.clear()
        table.update(before)


@pytest.fixture(autouse=True)
def gradients_of_paddle() -> None:
    """Paddle leaves gradients off after an error in a recomputation, for every later test."""
    paddle = sys.modules.get("paddle")
    if paddle is not None:
        paddle.set_grad_enabled(True)


@functools.cache
def load_golden(name: str) -> tuple[dict[str, np.ndarray], Any]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    for array in arrays.values():
        array.setflags(write=False)
    (key,) = arrays.keys() & {"cases", "config"}
    return arrays, json.loads(bytes(arrays.pop(key)))


@pytest.fixture(scope="session")
def golden() -> Callable[[str], tuple[dict[str, np.ndarray], Any]]:
    """``golden("vit_torch") -> (arrays, config)``; for "merge" the config is the list of cases."""
    return load_golden


@dataclass(frozen=True)
class GoldenCase:
    """One case of merge.npz: its arguments, and every array by its name."""

    number: int
    asked: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def protected(self) -> int:
        return sum(self.asked.get(name, False) for name in ("class_token", "distill_token"))

    @property
    def merged(self) -> int:
        """How many of the case's tokens must disappear."""
        return self.arrays["x"].shape[1] - self.arrays["merged_sum"].shape[1]

    def match(self, keys: Any) -> tomecore.MergePlan:
        """Return tomecore's plan for ``keys``, with the arguments of ToMe."""
        options = {name: value for name, value in self.asked.items() if name != "kind"}
        if self.asked["kind"] == "kth":
            return tomecore.kth_bipartite_soft_matching(keys, **options)
        return tomecore.bipartite_soft_matching(keys, **options)

    def compute(self, metric: Any, x: Any, size: Any) -> dict[str, Any]:
        """Return tomecore's results for the case, named as in the file; ``slots`` replaces ``source``."""
        plan = self.match(metric)
        merge, unmerge = plan
        found = {"merged_sum": merge(x, mode="sum")}
        if "unmerged" in self.arrays:
            found["unmerged"] = unmerge(found["merged_sum"])
        if "size" in self.arrays:
            found |= {"merged_mean": merge(x), "merged_amax": merge(x, mode="amax")}
            found["slots"] = plan.slots
            found["wavg"], found["wavg_size"] = tomecore.merge_weighted(plan, x, size)
        return found

    def check(
        self,
        library: Library,
        dtype: str,
        tolerance: float,
        compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
    ) -> None:
        """Every number of the case, computed in ``dtype`` with ``library``; slots and sizes exactly."""
        given = {
            name: library.to_array(self.arrays[name].astype(dtype)) for name in ("metric", "x")
        }
        size = self.arrays.get("size")
        given["size"] = size if size is None else library.to_array(size[:, :, 0].astype(dtype))
        expected = {name: array for name, array in self.arrays.items() if name not in given}
        if "source" in expected:
            expected["slots"] = expected.pop("source").argmax(axis=1)
            expected["wavg_size"] = expected["wavg_size"][:, :, 0]
        found = compiled(self.compute)(**given)
        assert found.keys() == expected.keys()
        for name, array in found.items():
            exact = {"slots": "int64", "wavg_size": "float32"}
            assert str(array.dtype).endswith(exact.get(name, dtype)), name
            allowed = 0 if name in exact else tolerance
            np.testing.assert_allclose(
                library.to_numpy(array), expected[name], allowed, allowed, err_msg=name
            )

    def __repr__(self) -> str:
        asked = {"protected": self.protected, **self.asked}
        names = ("k",) if self.asked["kind"] == "kth" else ("protected", "r")
        shape = "x".join(map(str, self.arrays["metric"].shape))
        return "-".join([self.asked["kind"], shape, *(f"{name}{asked[name]}" for name in names)])


@functools.cache
def golden_cases() -> list[GoldenCase]:
    arrays, cases = load_golden("merge")
    return [
        GoldenCase(
            number,
            asked,
            {
                name.partition(".")[2]: array
                for name, array in arrays.items()
                if name.startswith(f"{number:03d}.")
            },
        )
        for number, asked in enumerate(cases)
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``golden_case`` runs once per case of merge.npz."""
    if "golden_case" in metafunc.fixturenames:
        metafunc.parametrize("golden_case", golden_cases(), ids=repr)
