"""Law 13 on one model of every registered spec: what changes after the patch has its effect, or is refused.

The models are taken from the registry, so a new family is under it as soon as it has a case. Each more spec
adds about 25 short tests, two seconds.
"""
# ruff: noqa: F401 (pytest collects what is imported)

from __future__ import annotations

import pytest
from adapters.test_contract import (
    test_a_block_class_that_is_monkeypatched,
    test_a_block_that_is_given_a_child,
    test_a_block_with_a_forward_of_its_own,
    test_a_block_with_a_forward_that_calls_the_one_it_replaces,
    test_a_bypassed_class_that_is_monkeypatched,
    test_a_bypassed_module_that_is_replaced,
    test_a_bypassed_module_with_a_forward_of_its_own,
    test_a_bypassed_module_with_a_hook,
    test_a_bypassed_module_with_another_child,
    test_a_called_attention_around_which_an_adapter_is_put,
    test_a_called_attention_that_ignores_the_sizes,
    test_a_called_attention_that_takes_no_mask,
    test_a_called_attention_with_a_forward_that_calls_the_one_it_replaces,
)
from adapters.test_passes import (
    test_a_block_called_twice,
    test_a_block_left_out,
    test_a_pass_that_raised,
    test_blocks_in_another_order,
    test_the_last_block_left_out,
)
from adapters.test_prefix import (
    test_tokens_that_nobody_announced,
)

import tomecore.adapters.paddle
import tomecore.adapters.torch
from tomecore.adapters.engine.find import find_tower
from vits.cases import MORE, PLAIN
from vits.test_every_family import ELSEWHERE


def one_of_each():
    """Spec -> the first case of it."""
    found = {}
    for case in [*PLAIN, *MORE]:
        adapter = case.fw.tome
        model = case.build(img_size=16, depth=1)
        spec, _, _ = find_tower(adapter.HOST, adapter.SPECS, model)
        found.setdefault((case.fw.name, spec.family), case)
    return found


CASES = one_of_each()


@pytest.fixture(params=CASES.values(), ids=lambda case: case.name)
def case(request):
    """One model of each spec."""
    return request.param


@pytest.mark.parametrize(
    "adapter", [tomecore.adapters.torch, tomecore.adapters.paddle], ids=["torch", "paddle"]
)
def test_every_spec_that_bypasses_a_module_is_here(adapter):
    framework = adapter.__name__.rpartition(".")[2]
    named = {spec.family for spec in adapter.SPECS if spec.bypasses or spec.bypasses_biased}
    assert len(named) >= 8
    assert {family for family in named if (framework, family) not in CASES} <= ELSEWHERE.keys()
