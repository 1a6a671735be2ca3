"""Every public name that README, docs and CHANGELOG have used works, wherever its module has moved since."""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import tomecore.adapters.paddle
import tomecore.adapters.torch
from tomecore.errors import UnsupportedModelError

#: module -> public names in it. Add to it; what is here stays.
NAMES = {
    "tomecore": (
        "MergePlan __version__ apply_patch bipartite_soft_matching compose "
        "kth_bipartite_soft_matching merge_weighted parse_r partition_matching "
        "random_bipartite_soft_matching remove_patch tokens_per_layer visualize"
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
        "MissingLibraryError NoForwardError NotPatchedError StaleProgramWarning TomeError "
        "UnsupportedModelError"
    ),
    "tomecore.evaluation": "Pictures Result Row draw evaluate find",
    "tomecore.images": "Preprocess read_image",
    "tomecore.loading": "Loaded adapter_of load",
    "tomecore.matching": (
        "Context Matching bidirectional bipartite_soft_matching diffrate drop_similar evit find kth "
        "kth_bipartite_soft_matching name_of names needs needs_of partition_matching pitome ppt random "
        "random_bipartite_soft_matching register tofu tome tome_cis"
    ),
    "tomecore.matching.partitions": "partition_frames partition_grid",
    "tomecore.models.paddle": "VisionTransformer load_weights",
    "tomecore.models.torch": "VisionTransformer",
    "tomecore.parity": (
        "BlockReport Diagnosis Difference Flip LayerReport Report assert_parity compare "
        "convert_weights diagnose load_arrays transfer_weights"
    ),
    "tomecore.running": "evaluating framework_of logits_of predict require to_numpy to_tensor",
    "tomecore.schedule": (
        "Ratio Schedule for_speedup for_tokens load parse_r search tokens_per_layer tune"
    ),
    "tomecore.tracing": "Grid patch_grid sources_by_layer",
    "tomecore.visualization": "make_visualization preprocess_of sources_by_layer visualize",
}
#: parameters of ``apply_patch``: all by name but the model
PARAMETERS = ["model", "r", "matching", "protected", "prop_attn"]
PARAMETERS += ["trace_source", "restore", "trim_last"]


@pytest.mark.parametrize("name", NAMES)
def test_public_names_work(name):
    module = importlib.import_module(name)
    for one in NAMES[name].split():
        assert getattr(module, one) is not None, f"{name}.{one}"


def test_public_modules_resolve_lazily():
    """``import tomecore`` is enough to reach each of them, and imports no framework."""
    source = "import sys, tomecore\n"
    source += "".join(f"{name}\n" for name in NAMES if name.count(".") == 1)
    source += "tomecore.matching.partitions, tomecore.models.digits, tomecore.schedule.arithmetic\n"
    source += "assert not {'torch', 'paddle', 'jax'} & set(sys.modules), sorted(sys.modules)\n"
    source += "tomecore.adapters.torch, tomecore.models.torch\n"
    source += "tomecore.adapters.paddle, tomecore.models.paddle"
    subprocess.run([sys.executable, "-c", source], check=True)


def test_type_checkers_see_what_is_there():
    """The stub next to ``__init__.py`` has every name of ``tomecore``, and no other."""
    functions_of = vars(tomecore)["_FUNCTIONS"]
    stub = ast.parse(Path(tomecore.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imported = {
        (node.module if alias.name in functions_of else None, alias.asname)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    functions = {(f"tomecore.{home}", name) for name, home in functions_of.items()}
    others = {(None, name) for name in {*dir(tomecore)} - {*functions_of, "__version__"}}
    assert imported == functions | others


@pytest.mark.parametrize("adapter", [tomecore.adapters.torch, tomecore.adapters.paddle])
def test_apply_patch_takes_what_it_took(adapter):
    parameters = inspect.signature(adapter.apply_patch).parameters
    assert list(parameters)[: len(PARAMETERS)] == PARAMETERS
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in PARAMETERS[1:])


def test_a_model_that_was_pickled_before_the_modules_moved():
    """The first thing that its pickle loads."""
    with pytest.raises(UnsupportedModelError, match="then call apply_patch with this"):
        pickle.loads(b"ctomecore.adapters._swap\nrebuild\n.")


def test_a_renamed_method_has_its_old_name():
    assert tomecore.adapters.Spec.listed is tomecore.adapters.Spec.block_list
