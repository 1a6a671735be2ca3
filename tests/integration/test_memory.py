"""Memory after forwards with many batch sizes, numbers of tokens and r: it hardly grows.

Each case runs in a process of its own. It returns free pages to the system before it is measured, and oneDNN
keeps nothing of what it compiles for each shape of the patch embedding: both would grow without tomecore too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from typing import Any

import pytest

FORWARDS, WARM, MIB = 200, 20, 32
SIZES = (32, 64, 104, 160, 208)
CONFIG = {"patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 3}


def resident() -> float:
    """MiB of this process in memory, without the free pages that its allocator keeps."""
    import ctypes
    import gc

    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def run(framework: str) -> list[float]:
    """Memory after the first forwards, and after all."""
    import importlib

    import numpy as np

    tome = importlib.import_module(f"tomecore.adapters.{framework}")
    own = importlib.import_module(f"tomecore.models.{framework}")
    library: Any = importlib.import_module(framework)
    to_array = library.from_numpy if framework == "torch" else library.to_tensor
    models = {}
    for size in SIZES:
        model = own.VisionTransformer.from_config({**CONFIG, "img_size": size})
        model.eval()
        models[size] = tome.apply_patch(model)
    rng, found = np.random.default_rng(0), []
    warnings.simplefilter("ignore")
    for number in range(FORWARDS):
        size = int(rng.choice(SIZES)) if number else SIZES[-1]
        batch = int(rng.integers(1, 65)) if number else 64
        models[size].r = [int(r) for r in rng.integers(0, (size // 8) ** 2 // 3, 3)]
        with library.no_grad():
            models[size](to_array(np.zeros((batch, 3, size, size), "float32") + 0.1 * number))
        if number + 1 in (WARM, FORWARDS):
            found.append(resident())
    return found


@pytest.mark.parametrize("kernels", ["1", "0"], ids=["kernels", "calls"])
@pytest.mark.parametrize("framework", ["torch", "paddle"])
def test_forwards_of_any_shape_leave_nothing_behind(framework, kernels):
    mine = {
        "TOMECORE_KERNELS": kernels,
        "OMP_NUM_THREADS": "1",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1",
    }
    done = subprocess.run(
        [sys.executable, __file__, framework],
        capture_output=True,
        text=True,
        env={**os.environ, **mine},
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    warm, after = json.loads(done.stdout.strip().splitlines()[-1])
    assert after - warm <= MIB, f"{after - warm:.0f} MiB more after {FORWARDS} forwards"


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1])))
