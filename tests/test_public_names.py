"""Every public name that README, docs and CHANGELOG have used works, wherever its module has moved since."""

from __future__ import annotations

import importlib
import inspect
import pickle
import subprocess
import sys

import pytest

import tomecore.adapters.paddle
import tomecore.adapters.torch
from tomecore.errors import UnsupportedModelError

#: module -> public names in it. Add to it; what is here stays.
NAMES = {
    "tomecore": (
        "MergePlan __version__ bipartite_soft_matching compose kth_bipartite_soft_matching "
        "merge_weighted parse_r random_bipartite_soft_matching tokens_per_layer"
    ),
    "tomecore.adapters": "Spec Trim",
    "tomecore.adapters.paddle": "apply_patch handle register remove_patch",
    "tomecore.adapters.torch": "apply_patch handle register remove_patch",
    "tomecore.arithmetic": "Arithmetic LayerArithmetic PlannedLayer arithmetic_of plan_table",
    "tomecore.backends": "Backend backend_of register",
    "tomecore.benchmark": "Measurement Profile draw free_drop measure profile",
    "tomecore.digits": "DIGITS_VIT load weights_path",
    "tomecore.distributed": "Processes join local_rank",
    "tomecore.errors": (
        "ArgumentTypeError ArgumentValueError ClampWarning InnerHookWarning LostStateError "
        "NoForwardError NotPatchedError StaleProgramWarning TomeError UnsupportedModelError"
    ),
    "tomecore.evaluation": "Pictures Result Row draw evaluate find",
    "tomecore.images": "Preprocess read_image",
    "tomecore.loading": "Loaded adapter_of load",
    "tomecore.models.paddle": "VisionTransformer load_weights",
    "tomecore.models.torch": "VisionTransformer",
    "tomecore.parity": (
        "BlockReport Diagnosis Difference Flip LayerReport Report assert_parity compare "
        "convert_weights diagnose load_arrays transfer_weights"
    ),
    "tomecore.running": "evaluating framework_of logits_of predict require to_numpy to_tensor",
    "tomecore.schedule": "Ratio Schedule for_speedup for_tokens parse_r tokens_per_layer",
    "tomecore.tracing": "Grid patch_grid sources_by_layer",
    "tomecore.visualization": "make_visualization",
}
#: parameters of ``apply_patch``: all by name but the model
PARAMETERS = ["model", "r", "protected", "prop_attn", "trace_source", "restore", "trim_last"]


@pytest.mark.parametrize("name", NAMES)
def test_public_names_work(name):
    module = importlib.import_module(name)
    for one in NAMES[name].split():
        assert getattr(module, one) is not None, f"{name}.{one}"


def test_public_modules_resolve_lazily():
    """``import tomecore`` is enough to reach each of them, and imports no framework."""
    source = "import sys, tomecore\n"
    source += "".join(f"{name}\n" for name in NAMES if name.count(".") == 1)
    source += "assert not {'torch', 'paddle', 'jax'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", source], check=True)


@pytest.mark.parametrize("adapter", [tomecore.adapters.torch, tomecore.adapters.paddle])
def test_apply_patch_takes_what_it_took(adapter):
    parameters = inspect.signature(adapter.apply_patch).parameters
    assert list(parameters)[: len(PARAMETERS)] == PARAMETERS
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in PARAMETERS[1:])


def test_a_model_that_was_pickled_before_the_modules_moved():
    """The first thing that its pickle asks for."""
    with pytest.raises(UnsupportedModelError, match="then call apply_patch with this"):
        pickle.loads(b"ctomecore.adapters._swap\nrebuild\n.")
