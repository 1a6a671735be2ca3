"""Print as JSON which attention kernel PyTorch chooses on each architecture; run it with the stand-in.

PyTorch only chooses, and runs nothing. Each architecture gets a process, because PyTorch reads it once.
"""

from __future__ import annotations

import json
import os
import sys

import torch

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
KERNELS = {0: "math", 1: "flash", 2: "memory-efficient", 3: "cuDNN"}
DTYPES = ("bfloat16", "float16", "float32")
#: a batch of ViT-B/16 after one merge of 16 tokens
BATCH, HEADS, TOKENS, WIDTH = 64, 12, 181, 64


def choices() -> dict[str, list[str]]:
    """Return for each dtype the kernels without a bias, with a bias, and with the column."""
    found = {}
    for name in DTYPES:
        dtype = getattr(torch, name)
        kernels = []
        for width, biased in ((WIDTH, False), (WIDTH, True), (WIDTH + 8, False)):
            q = torch.empty(BATCH, TOKENS, HEADS, width, device="cuda", dtype=dtype).transpose(1, 2)
            rows = torch.empty(BATCH, 1, 1, TOKENS + -TOKENS % 8, device="cuda", dtype=dtype)
            bias = rows[..., :TOKENS] if biased else None
            kernels.append(KERNELS[torch._fused_sdp_choice(q, q, q, bias, 0.0, False)])
        found[name] = kernels
    return found


def in_a_process(architecture: int) -> dict[str, list[str]]:
    """Return the choices of an architecture."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.environ["CUDA_STAND_IN_SM"] = str(architecture)
        with os.fdopen(writer, "w") as out:
            json.dump(choices(), out)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as text:
        found = text.read()
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"no choice for sm_{architecture}")
    return json.loads(found)


if __name__ == "__main__":
    found = {str(one): in_a_process(one) for one in ARCHITECTURES}
    print(json.dumps({"torch": torch.__version__, "choices": found}))
