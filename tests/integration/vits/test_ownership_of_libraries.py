"""Ownership, memory and recomputation, on the plain ViT of each library: see ``conftest.py``."""
# ruff: noqa: F401 (pytest collects what is imported)

from __future__ import annotations

from adapters.test_gradients import (
    test_crops_of_several_sizes_and_a_teacher,
    test_r_changed_before_the_backward_pass_of_a_whole_model,
    test_two_passes_of_a_whole_model_under_two_values_of_r,
)
from adapters.test_ownership import (
    test_a_copied_block_does_not_bring_the_model_along,
    test_a_model_is_freed_without_the_collector,
    test_a_part_of_a_patched_model_that_is_still_there,
    test_a_part_whose_whole_is_gone,
    test_a_part_whose_whole_is_gone_is_unpatched,
    test_clamp_warnings_end,
    test_keys_are_let_go_before_the_other_half,
    test_overlapping_contexts_of_all_tokens,
    whole,
)
