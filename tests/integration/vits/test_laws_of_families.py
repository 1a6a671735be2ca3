"""The laws that need no knowledge of a block's anatomy, on every other family: see ``cases.py``."""
# ruff: noqa: F401 (pytest collects what is imported)

from __future__ import annotations

import numpy as np
import pytest
from adapters.test_duplicates import test_merging_twins_changes_nothing
from adapters.test_exactness import (
    test_dropped_paths_are_the_same_in_the_halves,
    test_proportional_attention_is_the_default_and_changes_the_output,
    test_r_zero_is_the_original_bit_for_bit,
    test_the_two_halves_are_the_blocks_own_forward,
    test_tokens_sizes_and_source_agree,
)
from adapters.test_extremes import (
    test_a_batch_of_one_is_the_first_of_a_batch,
    test_r_too_large_keeps_half_in_each_layer_and_never_the_prefix,
)
from adapters.test_gradients import (
    test_gradients_equal_finite_differences,
    test_recomputation_changes_no_gradient,
)
from adapters.test_lifecycle import (
    test_applying_twice_stacks_nothing,
    test_copies_are_independent_and_still_patched,
    test_patched_classes_keep_their_names,
    test_remove_leaves_no_trace,
)
from adapters.test_lost_state import test_a_hook_that_returns_a_new_tensor
from adapters.test_outputs import test_every_layer_can_hand_on_all_tokens
from adapters.test_refusals import (
    test_a_changed_block_is_refused_and_untouched,
    test_a_subclass_that_keeps_the_forward_is_fine,
)
from adapters.test_threads import (
    test_threads_that_share_a_model,
    test_train_and_eval_differ_by_dropped_paths_only,
)

from vits.cases import MORE


@pytest.fixture(params=MORE, ids=lambda case: case.name)
def case(request):
    """A kind of model of a library."""
    return request.param


@pytest.fixture(params=[c for c in MORE if not c.rounds], ids=lambda case: case.name)
def smooth(request):
    """A kind of model that does not round to float32 on the way."""
    return request.param


@pytest.mark.parametrize("r", [0, 8])
def test_one_step_in_training(case, r):
    """Dropped paths, frozen or not: the gradients of a step are finite and reach every block."""
    fw, model = case.fw, case.patched(r=r)
    model.train()
    fw.seed(0)
    gradients = fw.gradients(model, lambda: (model(case.tensors(8)) ** 2).sum())
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    paths = {id(module): path for path, module in fw.modules(model).items()}
    for block in case.blocks(model):
        name = f"{paths[id(block)]}."
        assert any(n.startswith(name) and np.abs(g).max() > 0 for n, g in gradients.items())
