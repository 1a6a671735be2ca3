"""``assert_parity`` says in which layer a planted fault shows, in which half of it, and what it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
import pytest
import torch
from pairs import images, pair, patched_pair

from tomecore import parity
from tomecore.adapters.engine import progress as progress_module
from tomecore.adapters.engine import reduce as reduce_module
from tomecore.adapters.engine.patch import config_of
from tomecore.backends import paddle as paddle_backend
from tomecore.core import merging
from tomecore.errors import ArgumentValueError, NotPatchedError
from tomecore.matching import bipartite


@pytest.fixture
def models() -> tuple[Any, Any]:
    return pair(depth=4)


def message(model_a: Any, model_b: Any, x: Any = None, r: Any = 8, **arguments: Any) -> str:
    """Return the message of ``assert_parity`` for two models that differ."""
    with pytest.raises(AssertionError) as caught:
        parity.assert_parity(model_a, model_b, images(3) if x is None else x, r=r, **arguments)
    text = str(caught.value)
    print(text)
    assert len(text.splitlines()) <= 15, text
    # pytest hides the frames of assert_parity, so that the message is what a failing test shows
    assert caught.traceback.filter(caught)[-1].name == "message"
    return text


def cause(text: str) -> str:
    """The likeliest one."""
    return next(line for line in text.splitlines() if line.startswith("Likely cause: "))


@pytest.mark.parametrize("r", [0, 8, [0, 0, 9, 9]], ids=str)
def test_twins_pass_and_are_left_as_they_were(models: tuple[Any, Any], r: Any) -> None:
    classes = [type(model.blocks[0]) for model in models]
    report = parity.assert_parity(*models, images(3), r=r)
    assert report.images == 3
    assert len(report.blocks) == 4
    assert 0 < max(block.output.largest for block in report.blocks) < 1e-11
    assert report.blocks[0].output.scale > 0.1
    assert [type(model.blocks[0]) for model in models] == classes
    assert not any(hasattr(model, "tome") for model in models)
    assert not models[0].blocks[0]._forward_hooks
    assert not models[1].blocks[0]._forward_post_hooks


@pytest.mark.parametrize("r", [0, 8], ids=str)
@pytest.mark.parametrize("name", ["attn.proj", "attn.qkv", "mlp.fc1"])
def test_one_wrong_weight(models: tuple[Any, Any], r: int, name: str) -> None:
    with torch.no_grad():
        linear = models[0].get_submodule(f"blocks.3.{name}")
        square = name == "attn.proj"
        linear.weight.copy_(linear.weight.T.clone() if square else linear.weight + 0.01)
    text = message(*models, r=r)
    halves = {"attn.proj": "merged tokens", "attn.qkv": "keys", "mlp.fc1": "output"}
    half = halves[name] if r else "output"
    assert f"They diverge at the {half} of layer 3: largest difference" in text
    differ = "b has the transpose of a" if square else "by 1.0e-02 at most"
    assert cause(text) == (
        f"Likely cause: in layer 3, the weights of blocks.3.{name} differ: {differ}."
    )
    assert "with r=0, too, they diverge, at the output of layer 3" in text
    assert "Look next at" in text
    assert " >     3  " in text


def test_a_wrong_weight_before_and_after_the_layers(models: tuple[Any, Any]) -> None:
    with torch.no_grad():
        models[0].head.weight.add_(0.1)
    text = message(*models)
    assert "They diverge at the head (what follows the last layer)" in text
    assert cause(text).startswith("Likely cause: after the last layer, the weights of head differ")
    with torch.no_grad():
        models[0].pos_embed.add_(0.1)
    text = message(*models)
    assert "They diverge at the embedding (what enters layer 0)" in text
    assert cause(text).startswith("Likely cause: before layer 0, the weights of pos_embed differ")


def test_another_epsilon_in_one_norm(models: tuple[Any, Any]) -> None:
    models[1].blocks[2].norm1._epsilon = 1e-5
    text = message(*models)
    assert "They diverge at the keys of layer 2" in text
    assert cause(text) == (
        "Likely cause: in layer 2, another epsilon: blocks.2.norm1 has 1e-06 in a and 1e-05 in b."
    )
    assert "all 56 weights are equal" in text


def test_another_epsilon_everywhere(models: tuple[Any, Any]) -> None:
    for block in models[1].blocks:
        block.norm1._epsilon = block.norm2._epsilon = 1e-5
    text = message(*models, r=0)
    assert "They diverge at the output of layer 0" in text
    assert "another epsilon: blocks.0.norm1 has 1e-06 in a and 1e-05 in b" in cause(text)
    assert "(and 1 more in this layer)" in cause(text)


def test_another_epsilon_is_told_though_float32_cannot_show_it() -> None:
    model_a, model_b = pair("float32", depth=4)
    assert "But:" not in str(parity.diagnose(model_a, model_b, images(2), r=8))
    model_b.blocks[2].norm2._epsilon = 2e-6
    found = parity.diagnose(model_a, model_b, images(2), r=8)
    assert found.agrees
    assert (
        "But: too small a difference to show here: in layer 2, another epsilon: blocks.2.norm2 has "
        "1e-06 in a and 2e-06 in b."
    ) in str(found)


def test_an_epsilon_that_shows_in_keys_only_is_no_fault_of_merging() -> None:
    """In float32 it is too small to show in the outputs of blocks, and so with r=0."""
    model_a, model_b = pair("float32", depth=4)
    for block in model_b.blocks:
        block.norm1._epsilon = 1e-5
    assert parity.diagnose(model_a, model_b, images(3), r=0).agrees
    text = message(model_a, model_b)
    assert "They diverge at the keys of layer 0" in text
    assert "another epsilon: blocks.0.norm1 has 1e-06 in a and 1e-05 in b" in cause(text)
    assert (
        "Also: with r=0 they agree on 2 images, but nothing has merged up to there: what differs is "
        "too small to show in the outputs of blocks."
    ) in text
    assert "at fault" not in text


def test_an_epsilon_that_shows_behind_a_merge_is_the_cause() -> None:
    model_a, model_b = patched_pair("float32", depth=4)
    model_b.blocks[2].norm1._epsilon = 4e-4
    assert parity.diagnose(model_a, model_b, images(3), r=0).agrees
    text = message(model_a, model_b, r=[0, 8, 8, 0])
    assert "in layer 2, another epsilon: blocks.2.norm1 has 1e-06 in a and 0.0004 in b" in text
    assert "another epsilon" in cause(text)
    assert "with r=0 they agree on 2 images, where what differs may be too small to show" in text
    assert "at fault" not in text


def test_what_is_wrong_with_keys_before_any_merge_is_no_fault_of_merging() -> None:
    """Though nothing is seen from outside: here, keys that one model computes otherwise."""
    model_a, model_b = patched_pair(depth=4)
    config, spec = config_of(model_b), config_of(model_b).spec

    def attend(host: Any, block: Any, x: Any, bias: Any, given: Any) -> Any:
        x, key = spec.attend(host, block, x, bias, given)
        return x, key * 1.001

    config.spec = dataclasses.replace(spec, attend=attend)
    text = message(model_a, model_b)
    assert "They diverge at the keys of layer 0" in text
    assert "nothing has merged up to there" in text
    assert "read what computes the keys of layer 0" in cause(text)


def test_images_are_numbered_over_batches(models: tuple[Any, Any]) -> None:
    with torch.no_grad():
        models[0].blocks[2].attn.qkv.weight.add_(0.3)
    report = parity.diagnose(*models, images(5), r=[0, 0, 9, 0], batch=2).report
    assert [flip.image for flip in report.flips] == [0, 1, 2, 3, 4]
    assert [block.images for block in report.blocks] == [5, 5, 0, 0]


def test_a_deep_model_is_told_in_few_lines() -> None:
    model_a, model_b = pair(depth=26)
    agreeing = str(parity.diagnose(model_a, model_b, images(1), r=2)).splitlines()
    assert len(agreeing) == 13
    assert [line.split()[0] for line in agreeing[4:]] == [
        *("0", "1", "2", "3", "...", "22", "23", "24", "25"),
    ]
    with torch.no_grad():
        model_a.blocks[20].mlp.fc2.weight.add_(0.1)
    text = message(model_a, model_b, images(1), r=2)
    assert " >    20 " in text
    assert text.count("...") == 2


def test_dropped_proportional_attention() -> None:
    model_a, model_b = patched_pair(depth=4)
    config_of(model_b).prop_attn = False
    text = message(model_a, model_b, r=[0, 8, 0, 8])
    assert "They diverge at the output of layer 2" in text
    assert cause(text) == (
        "Likely cause: dropped proportional attention: prop_attn is True in a and False in b; layer 2 "
        "is the first to show it after the merge in layer 1, and without it in both they agree."
    )
    assert "with r=0 they agree on 2 images, so merging is at fault" in text
    assert config_of(model_a).prop_attn
    assert model_a.r == 0


@pytest.mark.parametrize("form", [True, "column"])
def test_dropped_proportional_attention_that_the_settings_do_not_show(form: bool | str) -> None:
    model_a, model_b = patched_pair(depth=4)
    config_of(model_a).prop_attn = form
    config, spec = config_of(model_b), config_of(model_b).spec

    def attend(host: Any, block: Any, x: Any, bias: Any, given: Any) -> Any:
        return spec.attend(host, block, x, None, given)

    config.spec = dataclasses.replace(spec, attend=attend)
    text = message(model_a, model_b)
    assert "They diverge at the merged tokens of layer 1" in text
    assert (
        f"dropped proportional attention: prop_attn is {form} in a and True in b, but one" in text
    )


@pytest.fixture
def unstable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Paddle sorts as before, but puts ties in reverse order."""
    argsort = paddle_backend.argsort

    def last_of_equals(x: Any, /, *, axis: int, descending: bool = False, **kwargs: Any) -> Any:
        if not descending:  # the permutation for `slots`, which has no ties
            return argsort(x, axis=axis, **kwargs)
        return paddle.flip(argsort(x, axis=axis, descending=False, stable=True), axis)

    monkeypatch.setattr(paddle_backend, "argsort", last_of_equals)
    return None


@pytest.fixture
def twins() -> np.ndarray:
    """Images whose patches are four kinds only."""
    return np.tile(np.random.default_rng(3).standard_normal((2, 3, 8, 8)), (1, 1, 7, 7))


def without_positions(models: tuple[Any, Any]) -> None:
    """So that equal patches are equal tokens."""
    with torch.no_grad():
        models[0].pos_embed.copy_(models[0].pos_embed[:, :1].clone().expand_as(models[0].pos_embed))
    parity.transfer_weights(*models)


@pytest.mark.usefixtures("unstable")
def test_an_unstable_sort(models: tuple[Any, Any], twins: np.ndarray) -> None:
    without_positions(models)
    text = message(*models, np.concatenate([np.zeros_like(twins), twins]))
    assert (
        "They diverge at the merge decisions of layer 0: image 0, layer 0: a merges token" in text
    )
    assert "(an exact tie); " in text
    assert cause(text) == (
        "Likely cause: an unstable sort in b (paddle VisionTransformer): in layer 0 decisions differ "
        "only among exact ties, which go to the first token."
    )


@pytest.mark.usefixtures("unstable")
def test_an_unstable_sort_is_not_seen_without_ties(models: tuple[Any, Any]) -> None:
    parity.assert_parity(*models, images(2), r=8)


def test_ties_alone_are_no_fault(models: tuple[Any, Any], twins: np.ndarray) -> None:
    without_positions(models)
    report = parity.assert_parity(*models, np.concatenate([twins, images(1)]), r=8)
    assert not any(flip.tied for flip in report.flips)


def test_a_token_at_the_front_is_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    model_a, model_b = patched_pair(depth=4, distilled=True)
    config_of(model_b).prefix = 0
    monkeypatch.setattr(progress_module, "check_prefix", lambda *_: None)  # it would notice
    with torch.no_grad():  # every token alike, so that those at the front would merge first
        model_a.dist_token.copy_(model_a.cls_token)
        model_a.pos_embed[:, 1] = model_a.pos_embed[:, 0]
    parity.transfer_weights(model_a, model_b)
    text = message(model_a, model_b, r=[0, 8, 0, 0])
    assert "They diverge at the merge decisions of layer 1" in text
    assert cause(text) == (
        "Likely cause: another number of protected tokens: 2 in a, 0 in b, so in layer 1 b may merge "
        "tokens 0 to 1, a class, distillation or register token."
    )


def test_other_amounts_are_a_divergence_with_a_cause() -> None:
    model_a, model_b = patched_pair(depth=4)
    model_a.r, model_b.r = 8, [8, 8, 9, 8]
    text = message(model_a, model_b, r=None)
    assert "They diverge at the schedule: layer 2 merges different amounts" in text
    assert "a keeps 173 tokens there and b 172" in text
    assert "Likely cause: another r: 8 in a, [8, 8, 9, 8] in b." in text


def test_not_a_number_is_a_divergence(models: tuple[Any, Any]) -> None:
    x = images(2)
    x[1, 0, 0, 0] = np.nan
    text = message(*models, x)
    assert "the embedding (what enters layer 0): largest difference nan" in text
    assert cause(text) == "Likely cause: the images are not all finite numbers."
    with torch.no_grad():
        models[0].blocks[1].mlp.fc2.weight[0, 0] = np.nan
    text = message(*models)
    assert "They diverge at the output of layer 1" in text
    assert cause(text).startswith("Likely cause: NaN or infinity in a, not before the output of")


def test_a_near_tie_is_no_fault_but_is_shown() -> None:
    model_a, model_b = patched_pair("float32", depth=4)
    with torch.no_grad():
        noise = torch.randn(model_a.pos_embed.shape, generator=torch.Generator().manual_seed(0))
        model_a.pos_embed.copy_(model_a.pos_embed[:, :1] + 1e-6 * noise)
    parity.transfer_weights(model_a, model_b)
    x = np.concatenate([images(2), np.ones((1, 3, 56, 56))])
    found = parity.diagnose(model_a, model_b, x, r=[0, 0, 8, 8])
    assert found.agrees
    assert 0 < found.report.largest_gap < 1e-5
    assert "near-tie, decided differently by rounding: image 2, layer 2: a merges token" in str(
        found
    )
    text = message(model_a, model_b, x[2:], r=[0, 0, 8, 8])
    assert "They are undecided: no image is left" in text
    text = message(model_a, model_b, x, r=[0, 0, 8, 8], gap=0)
    assert "They diverge at the merge decisions of layer 2: image 2, layer 2: a merges" in text
    assert "score gap" in text


def test_a_matching_that_does_not_follow_from_its_keys(
    models: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(backend: Any, keys: Any, *arguments: Any) -> Any:
        keys = keys[..., :3] if backend.name == "torch" else keys
        return bipartite.match_bipartite(backend, keys, *arguments)

    monkeypatch.setattr(reduce_module, "match_bipartite", wrong)
    text = message(*models)
    assert "They diverge at the merge decisions of layer 0" in text
    assert cause(text) == (
        "Likely cause: the matching in a (torch VisionTransformer): its plan does not follow from its "
        "own keys."
    )


def test_sizes_that_are_miscounted(
    models: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(plan: Any, x: Any, sizes: Any, padded: bool) -> Any:
        x, sizes = merging.weighted_mean(plan, x, sizes, padded)
        return x, sizes + (plan.backend.name == "paddle")

    monkeypatch.setattr(reduce_module, "weighted_mean", wrong)
    text = message(*models, r=[0, 8, 0, 0])
    assert "They diverge at the sizes of layer 1: 100.00% of them differ though" in text
    assert "Look next at tomecore's merging" in text


def test_one_model_may_hand_on_all_tokens() -> None:
    model_a, model_b = patched_pair(depth=4)
    with model_a.tome.all_tokens():
        report = parity.assert_parity(model_a, model_b, images(2), r=8)
    assert len(report.layers) == 4


def test_patched_models_keep_their_r() -> None:
    model_a, model_b = patched_pair(depth=4)
    model_a.r, model_b.r = 3, [1, 2, 3, 0]
    parity.assert_parity(model_a, model_b, images(1), r=8)
    assert (model_a.r, model_b.r) == (3, [1, 2, 3, 0])


def test_another_number_of_heads(models: tuple[Any, Any]) -> None:
    attention = models[1].blocks[1].attn
    attention.num_heads, attention.head_dim, attention.scale = 2, 24, 24**-0.5
    text = message(*models)
    assert "They diverge at the keys of layer 1: they have another shape in b" in text
    assert "in layer 1, another number of heads: blocks.1.attn has 4 in a and 2 in b" in text


def test_arguments_are_checked(models: tuple[Any, Any]) -> None:
    with pytest.raises(
        NotPatchedError, match=r"`model_a` \(VisionTransformer\) is not patched and no"
    ):
        parity.assert_parity(*models, images(1))
    with pytest.raises(ArgumentValueError, match="`rtol` must be at least 0; got -1"):
        parity.assert_parity(*models, images(1), r=8, rtol=-1)
    with pytest.raises(ArgumentValueError, match="`images` must not be empty"):
        parity.assert_parity(*models, images(0), r=8)
    with pytest.raises(ArgumentValueError, match=r"not of one architecture: number of layers is 4"):
        parity.assert_parity(models[0], pair(depth=3)[1], images(1), r=8)
