"""Hold weak references to the modules of one patched model.

So a model is freed when it is no longer used, and a block is copied or pickled without the others.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["Modules"]


class Modules:
    """The patched model, the module that owns the list of blocks, and the blocks.

    Args:
        model: the model that ``apply_patch`` was called with.
        tower: the module that owns the list of blocks.
        blocks: the blocks, in order.
    """

    def __init__(self, model: Any, tower: Any, blocks: list[Any]) -> None:
        self._root: Callable[[], Any] = weakref.ref(model)
        self._tower: Callable[[], Any] = weakref.ref(tower)
        self._blocks: dict[int, Callable[[], Any]] = {
            index: weakref.ref(block) for index, block in enumerate(blocks)
        }
        self._count = len(blocks)
        #: references to the modules with a hook of tomecore
        self.listening: list[Callable[[], Any]] = []
        #: references to the modules between the tower and its blocks
        self.between: list[Callable[[], Any]] = []

    def __getstate__(self) -> int:
        """Return only the number of blocks: the modules of a copy register themselves by :meth:`adopt`."""
        return self._count

    def __setstate__(self, count: int) -> None:
        self._root = self._tower = _nothing
        self._blocks, self._count = {}, count
        self.listening, self.between = [], []

    def adopt(self, module: Any) -> None:
        """Register a module of a copied or loaded model in place of the original."""
        place = vars(module)
        index = place.get("_tome_index")
        if index is not None and self._block(index) is None:
            self._blocks[index] = weakref.ref(module)
        if place.get("_tome_tower") and self._tower() is None:
            self._tower = weakref.ref(module)
        if place.get("_tome_root") and self._root() is None:
            self._root = weakref.ref(module)

    @property
    def root(self) -> Any:
        """The model that ``apply_patch`` was called with; None if it was freed."""
        return self._root()

    @property
    def tower(self) -> Any:
        """The module that owns the list of blocks; None if it was freed."""
        return self._tower()

    @property
    def blocks(self) -> list[Any]:
        """The blocks in order; None for each one that was freed."""
        if len(self._blocks) == self._count:
            return [reference() for reference in self._blocks.values()]
        return [self._block(index) for index in range(self._count)]

    def _block(self, index: int) -> Any:
        reference = self._blocks.get(index)
        return None if reference is None else reference()


def _nothing() -> None:
    """Return None, in place of a weak reference to a freed module."""
