"""The laws of ``tests/adapters``, on the models of real libraries: see ``cases.py``."""
# ruff: noqa: F401 (pytest collects what is imported)

from __future__ import annotations

import numpy as np
import pytest
from adapters.test_duplicates import test_merging_twins_changes_nothing
from adapters.test_exactness import (
    test_dropped_paths_are_the_same_in_the_halves,
    test_every_block_merges_like_the_written_out_model,
    test_proportional_attention_is_the_default_and_changes_the_output,
    test_r_zero_is_the_original_bit_for_bit,
    test_the_two_halves_are_the_blocks_own_forward,
    test_tokens_sizes_and_source_agree,
)
from adapters.test_extremes import (
    test_a_batch_of_one_is_the_first_of_a_batch,
    test_any_number_of_tokens,
    test_r_too_large_keeps_half_in_each_layer_and_never_the_prefix,
)
from adapters.test_golden_models import (
    test_every_run,
    test_the_unpatched_model_is_the_published_one,
)
from adapters.test_gradients import test_gradients_equal_finite_differences
from adapters.test_lifecycle import (
    test_applying_twice_stacks_nothing,
    test_copies_are_independent_and_still_patched,
    test_patched_classes_keep_their_names,
    test_remove_leaves_no_trace,
)
from adapters.test_lost_state import (
    test_a_block_called_by_itself,
    test_a_hook_that_returns_a_new_tensor,
    test_nothing_of_a_forward_pass_stays_but_its_results,
)
from adapters.test_outputs import (
    test_forward_features_keep_their_shape,
    test_without_restore_the_shorter_sequence_comes_out,
)
from adapters.test_refusals import (
    test_a_changed_model_is_refused_and_untouched,
    test_a_subclass_that_keeps_the_forward_is_fine,
)
from adapters.test_threads import (
    test_threads_that_share_a_model,
    test_train_and_eval_differ_by_dropped_paths_only,
)


@pytest.mark.parametrize("r", [0, 8])
def test_one_step_in_training(case, r):
    """Dropped paths, frozen or not: the gradients of a step are finite and reach every block."""
    fw, model = case.fw, case.patched(r=r)
    model.train()
    fw.seed(0)
    gradients = fw.gradients(model, lambda: (model(case.tensors(8)) ** 2).sum())
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    for layer in range(4):
        assert any(f"blocks.{layer}." in n and np.abs(g).max() > 0 for n, g in gradients.items())
