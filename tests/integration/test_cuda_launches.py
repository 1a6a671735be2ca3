"""Count what a merge launches on a GPU, on a machine without one (``cuda_runtime/README.md``).

PyTorch's own CUDA code runs, without kernels. So these tests see each launch, copy and wait, but no values
and no times. They need gcc.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tomecore.schedule import gpu

RUNTIME = Path(__file__).parent / "cuda_runtime"
sys.path.insert(0, str(RUNTIME))

import stand_in  # noqa: E402 (found by the line above)

#: how many more launches, copies and memsets a block may have than the unpatched one: the first block, which
#: gets no sizes; a later one; the last, which restores the tokens of three
BUDGET = {
    "bfloat16": (35, 37, 50),
    "float16": (35, 37, 50),
    "float32": (38, 38, 51),
    "autocast": (38, 40, 53),
    "column": (35, 44, 57),
}

#: the same with the Triton kernels
FUSED = {
    "bfloat16": (4, 6, 10),
    "float16": (4, 6, 10),
    "float32": (4, 4, 8),
    "autocast": (4, 6, 10),
    "column": (4, 13, 17),
}

#: what a later block launches in bfloat16 that the unpatched block does not
LATER = {
    "log of the sizes": "log_kernel",
    "memory-efficient attention, in place of flash": "FillFunctor FillFunctor fmha_cutlassF",
    "keys": "sum_functor NormTwoOps clamp DivFunctor",
    "similarities and their maxima": "cublasSgemmStridedBatched MaxOps",
    "one sort": "COPY arange direct_copy COPY warpMergeSort",
    "rows that merge, and where": "TensorAssign CUDAFunctor_add addcmul",
    "rows that stay": "CUDAFunctor_add FillFunctor scatter_fill scan_innermost ReduceMinimum",
    "sizes": "TensorAssign TensorAssign CompareEqFunctor ReduceAdd TensorAssign DivFunctor",
    "rows of tokens": "vectorized_gather vectorized_gather",
    "means": "MulFunctor nan_to_num cublasSgemmStridedBatched addcmul index_copy",
    "infinity": "hardshrink tma_scatter_add",
}
#: the word for a kernel in this list: the first of these in its name
WORD = re.compile(
    r"^COPY|^MEMSET|(?<=cublas:)\w+|fmha_cutlassF|scan_innermost|warpMergeSort|index_copy|scatter_fill"
    r"|vectorized_gather|tma_scatter_add|ReduceAdd|ReduceMinimum|TensorAssign|CatArray|sum_functor|NormTwoOps"
    r"|MaxOps|arange|direct_copy|bfloat16_copy|nan_to_num|hardshrink|addcmul|clamp|log_kernel|CUDAFunctor_add"
    r"|FillFunctor|DivFunctor|MulFunctor|CompareEqFunctor|layer_norm|Gelu"
)


def word(line):
    """Return a short name for an entry of the log; its whole name, if there is none."""
    found = WORD.search(line)
    return found[0] if found else line.rpartition(" ")[0]


def added(before, after):
    """Return how often ``after`` has each word more often than ``before``."""
    return Counter(map(word, after)) - Counter(map(word, before))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder in which the stand-in is built."""
    found = tmp_path_factory.mktemp("stand_in")
    stand_in.build(found)
    return found


@pytest.fixture(scope="module")
def probe(folder):
    """Return what ``cuda_runtime/probe.py`` prints."""
    done = stand_in.run([str(RUNTIME / "probe.py")], folder)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def fused(folder):
    """Return the same with the Triton kernels."""
    done = stand_in.run([str(RUNTIME / "probe.py"), "--fused"], folder)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("cell", FUSED)
def test_budget_of_the_kernels(fused, cell):
    """Each merge is the four kernels; what else a block launches is attention's, and restoring tokens."""
    unpatched, patched = fused["launches"][cell]
    check_budget(unpatched, patched, FUSED[cell])
    for block in patched:
        names = [line.split()[2] for line in block if line.startswith("LAUNCH triton")]
        assert names == ["unit_keys", "best_partners", "make_plan", "move_tokens"]


def test_nothing_leaves_the_gpu_with_the_kernels(fused):
    assert len(fused["passes"]) == 2 * len(FUSED)
    for name, found in fused["passes"].items():
        assert not found["host"], name


@pytest.mark.parametrize("cell", BUDGET)
def test_budget(probe, cell):
    """No block launches more than the budget, and none copies to or from the host, or waits."""
    unpatched, patched = probe["launches"][cell]
    check_budget(unpatched, patched, BUDGET[cell])


def test_the_estimate_of_break_even_counts_these():
    assert (gpu.CALLS.launches, gpu.FUSED.launches) == (BUDGET["bfloat16"][1], FUSED["bfloat16"][1])


def check_budget(unpatched, patched, budget):
    """Raise unless each block keeps to the budget, without copies to or from the host, and without waits."""
    for place, limit, before, after in zip(
        ("first", "later", "last"), budget, unpatched, patched, strict=True
    ):
        more = len(after) - len(before)
        lines = "\n".join(f"{count} x {name}" for name, count in added(before, after).items())
        assert more <= limit, f"the {place} block launches {more} more than unpatched:\n{lines}"
        assert not [
            line
            for line in after
            if line.startswith(("WAIT", "COPY HtoD", "COPY DtoH", "COPY sync"))
        ]


def test_each_launch_of_a_later_block(probe):
    """In bfloat16: a launch that comes new is named, and one that goes is taken from the list."""
    (_, before, _), (_, after, _) = probe["launches"]["bfloat16"]
    found, expected = added(before, after), Counter(" ".join(LATER.values()).split())
    new, gone = found - expected, expected - found
    lines = [line for line in after if word(line) in new]
    assert not new, f"new: {dict(new)}, among\n" + "\n".join(lines)
    assert not gone, f"no longer launched: {dict(gone)}"


def test_nothing_leaves_the_gpu(probe):
    """In evaluation and in training: no copy to or from the host, no wait, no tensor on another device."""
    assert len(probe["passes"]) == 2 * len(BUDGET)
    for name, found in probe["passes"].items():
        assert found["calls"] > 400, name
        assert found["launches"] > 150, name
        assert not found["host"], name
        assert not found["elsewhere"], name


def test_a_forward_is_captured_as_a_cuda_graph(probe):
    kinds = [line.split()[0] for line in probe["captured"]]
    begin, end = (index for index, kind in enumerate(kinds) if kind == "CAPTURE")
    assert kinds[begin + 1 : end].count("LAUNCH") > 100
    assert "WAIT" not in kinds[begin + 1 : end]
    assert not [line for line in probe["captured"][begin:end] if "HtoD" in line or "DtoH" in line]


def test_streams_do_not_share_constants(probe):
    """Streams are not ordered: one may read before the other has written."""
    first, second = probe["streams"]["each"]
    assert first == second > 10
    assert probe["streams"]["shared"] == 0


def test_deterministic_mode_raises_nothing(probe):
    assert probe["deterministic"] == "done"


def test_the_table_of_attention_kernels_is_up_to_date():
    """``tools/attention_kernels.py`` writes it into docs/when-merging-pays.md."""
    tool = Path(__file__).parents[2] / "tools" / "attention_kernels.py"
    done = subprocess.run(
        [sys.executable, tool, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_failing_script_fails_here(folder):
    """A probe that stops half-way must not pass."""
    with pytest.raises(RuntimeError, match="no such thing"):
        stand_in.run(["-c", "raise SystemExit('no such thing')"], folder)
