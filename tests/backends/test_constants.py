"""Index constants: shared, bounded by bytes, and never between streams."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from libraries import LIBRARIES

import tomecore as tc
from tomecore.backends import backend_of
from tomecore.backends import paddle as paddle_backend
from tomecore.backends import torch as torch_backend
from tomecore.backends.constants import ConstantCache

MODULES = {"torch": torch_backend, "paddle": paddle_backend}


@pytest.fixture(params=MODULES, ids=str)
def kept(request):
    """(library, module) of a library that keeps constants, and has none yet."""
    module = MODULES[request.param]
    module.CONSTANTS.clear()
    return LIBRARIES[request.param], module


def storages(shelf):
    """Return the bytes of all arrays in a cache, each memory once."""
    found = {}
    for array, _ in shelf._held.values():
        if isinstance(array, torch.Tensor):
            storage = array.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        else:
            found[array.data_ptr()] = array.numel() * array.element_size()
    return sum(found.values())


def test_300_shapes_leave_little_behind(kept):
    library, module = kept
    rng = np.random.default_rng(0)
    for tokens in range(901, 301, -2):
        keys = library.to_array(np.zeros((int(rng.integers(1, 65)), tokens, 1), "float32"))
        plan = tc.bipartite_soft_matching(keys, 1, protected=1)
        tc.merge_weighted(plan, keys)
        tc.compose(plan.slots, plan)
    assert 0 < storages(module.CONSTANTS) <= module.CONSTANTS.limit <= 2**21


def test_samples_share_the_memory_of_a_range(kept):
    """A batch of 1000 costs as much as one sample, except for the numbers of the first rows."""
    library, module = kept
    index = library.to_array(np.zeros((1000, 3), "int64"))
    numbers = backend_of(index).batched_arange(index, 0, 500, 1)
    assert library.to_numpy(numbers).tolist() == [list(range(500))] * 1000
    assert storages(module.CONSTANTS) == 500 * 8


def test_a_constant_is_made_once_for_each_stream(kept, monkeypatch):
    library, module = kept
    index = library.to_array(np.zeros((2, 3), "int64"))
    device = backend_of(index).device(index)
    first = module.arange(0, 7, device=device)
    assert module.arange(0, 7, device=device) is first
    monkeypatch.setattr(module, "_stream", lambda device: 7)
    other = module.arange(0, 7, device=device)
    assert other is not first
    assert module.arange(0, 7, device=device) is other
    monkeypatch.setattr(module, "_stream", lambda device: None)
    held = len(module.CONSTANTS)
    anew = [module.arange(0, 7, device=device) for _ in range(2)]
    assert anew[0] is not anew[1]
    backend_of(index).batched_arange(index, 0, 9, 1)
    backend_of(index).flat_rows(index, 5)
    assert len(module.CONSTANTS) == held


def test_streams_of_torch(monkeypatch):
    """A device creates them again if its streams are unknown, or if it has no number."""
    monkeypatch.setattr(torch_backend, "_capturing", lambda: False)
    monkeypatch.setattr(torch_backend, "_current_stream", lambda index: 100 + index)
    found = {
        name: torch_backend._stream(torch.device(name)) for name in ("cpu", "cuda:1", "cuda", "xpu")
    }
    assert found == {"cpu": 0, "cuda:1": 101, "cuda": None, "xpu": None}
    monkeypatch.setattr(torch_backend, "_capturing", lambda: True)
    assert torch_backend._stream(torch.device("cuda:1")) is None


class Place:
    """As Paddle says where a tensor is."""

    def __init__(self, kind):
        self.is_cpu_place = lambda: kind == "cpu"
        self.is_gpu_place = lambda: kind == "gpu"
        self.gpu_device_id = lambda: 1


def test_streams_of_paddle(monkeypatch):
    core, capturing = paddle_backend.paddle.base.core, []
    streams = {1: type("CUDAStream", (), {"cuda_stream": 55})}
    monkeypatch.setattr(core, "_get_current_stream", streams.__getitem__)
    monkeypatch.setattr(core, "is_cuda_graph_capturing", lambda: bool(capturing))
    monkeypatch.setattr(paddle_backend, "_HAS_STREAMS", True)
    assert paddle_backend._stream(Place("cpu")) == 0
    assert paddle_backend._stream(Place("gpu")) == 55
    assert paddle_backend._stream(Place("xpu")) is None
    capturing.append(True)
    assert paddle_backend._stream(Place("gpu")) is None
    capturing.clear()
    streams[1] = object()  # a release that does not say
    assert paddle_backend._stream(Place("gpu")) is None


def test_the_raw_stream_of_torch_is_there():
    """A private name that compiled graphs rely on, and so do we."""
    assert callable(torch._C._cuda_getCurrentRawStream) or not torch.backends.cuda.is_built()


def test_the_oldest_go_first():
    shelf = ConstantCache(3 * 1000)
    for key in "abcd":
        assert shelf.get(key) is None
        assert shelf.put(key, key.upper(), 488) == key.upper()
    assert [shelf.get(key) for key in "abcd"] == [None, "B", "C", "D"]
    assert shelf.size == 3000
    assert shelf.put("b", "another", 488) == "B"
    assert shelf.put("large", "too large", 3000) == "too large"
    assert len(shelf) == 3
    assert shelf.get("large") is None
    shelf.clear()
    assert (len(shelf), shelf.size) == (0, 0)


def test_threads_share_a_shelf():
    """They are given one and the same array, and the count of bytes stays right."""
    shelf, seen = ConstantCache(40 * 520), []

    def work(seed):
        for number in np.random.default_rng(seed).integers(0, 80, 3000).tolist():
            found = shelf.get(number)
            seen.append((number, shelf.put(number, [number], 8) if found is None else found))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(array == [number] for number, array in seen)
    assert len(shelf) == 40
    assert shelf.size == 40 * 520
