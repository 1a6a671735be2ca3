"""A cache of constant arrays, limited in bytes."""

from __future__ import annotations

import threading
from typing import Any

__all__ = ["ConstantCache"]

#: roughly the bytes that an array takes in addition to its numbers
_OBJECT = 512


class ConstantCache:
    """Arrays by key, at most ``limit`` bytes of them; the oldest are dropped first.

    Threads may share a cache, and must not write to its arrays. On a GPU the key must name the stream:
    another stream may run before the numbers of an array are written.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._held: dict[Any, tuple[Any, int]] = {}
        self._lock = threading.Lock()

    def get(self, key: Any) -> Any:
        """Return the array for ``key``, or None."""
        found = self._held.get(key)
        return None if found is None else found[0]

    def put(self, key: Any, array: Any, size: int) -> Any:
        """Store ``array``, of ``size`` bytes, and return it; or return what another thread stored."""
        size += _OBJECT
        with self._lock:
            found = self._held.get(key)
            if found is not None:
                return found[0]
            if size > self.limit:
                return array
            while self.size + size > self.limit:
                oldest = next(iter(self._held))
                self.size -= self._held.pop(oldest)[1]
            self._held[key] = array, size
            self.size += size
        return array

    def clear(self) -> None:
        """Drop all arrays."""
        with self._lock:
            self._held.clear()
            self.size = 0

    def __len__(self) -> int:
        return len(self._held)
