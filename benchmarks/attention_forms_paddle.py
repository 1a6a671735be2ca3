"""Proportional attention in Paddle on a CPU: the sizes as a mask of the kernel, and as a column of the keys.

    python benchmarks/attention_forms_paddle.py --json benchmarks/results/attention-forms-paddle-cpu.json

Times are relative to attention without sizes, and interleaved with it. ``form_of`` in
``tomecore/adapters/hosts/paddle_attention.py`` uses them to choose the form on a CPU.
``tests/adapters/test_paddle_only.py`` tests that both forms are the same function.
"""

from __future__ import annotations

import argparse
import json
import os
from itertools import product
from pathlib import Path
from typing import Any

from tomecore.benchmark import interleave, median_ratio

#: (batch, heads, tokens)
SHAPES = list(product((1, 8), (3, 6, 12), (50, 197, 577)))


def measured(shape: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """Return the times of one shape with 64 channels per head, relative to those without sizes."""
    import paddle

    from tomecore.adapters import paddle as tome
    from tomecore.adapters.hosts import paddle_attention as forms

    batch, heads, tokens = shape
    q, k, v = (paddle.randn([batch, tokens, heads, 64]) for _ in range(3))
    sizes = paddle.randint(1, 9, [batch, tokens]).astype("float32")
    bias = tome.HOST.log_sizes(sizes, q)
    kernel = paddle.nn.functional.scaled_dot_product_attention
    calls = {
        "plain": lambda: kernel(q, k, v),
        "mask": lambda: kernel(q, k, v, attn_mask=bias),
        "column": lambda: forms.with_key_column(q, k, v, bias, 0.0, 64**-0.5),
    }
    with paddle.no_grad():
        timed = list(interleave(calls, rounds))
    ratios = {name: median_ratio(timed, name, "plain") for name in ("mask", "column")}
    return {"shape": list(shape), **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="keep the numbers")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # before Paddle is imported
    print("batch heads tokens   mask column")
    found = []
    for shape in SHAPES:
        found.append(measured(shape, arguments.rounds))
        batch, heads, tokens = shape
        one = found[-1]
        print(
            f"{batch:5d} {heads:5d} {tokens:6d}  {one['mask']:5.2f} {one['column']:6.2f}",
            flush=True,
        )
    if arguments.json:
        from tomecore.benchmark import machine

        content = {"machine": machine(), "threads": arguments.threads, "shapes": found}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
