"""Activation checkpointing by the libraries' own switches, and what else training does to a model."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from production.models import KINDS, close, gradients, images, kind_named

REENTRANT = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])


def by_timm(model, reentrant):
    from timm.layers import set_reentrant_ckpt

    set_reentrant_ckpt(reentrant)
    model.set_grad_checkpointing(True)


def without_reentrance(model, reentrant):
    """timm's Eva passes keywords, which reentrant checkpoints refuse; open_clip has no such choice."""
    assert not reentrant
    model.set_grad_checkpointing(True)


def by_transformers(model, reentrant):
    model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})


SWITCHES = {
    "timm-vit": by_timm,
    "timm-eva": without_reentrance,
    "open_clip": without_reentrance,
    "transformers-dinov2": by_transformers,
    "transformers-clip": by_transformers,
}


PAIRS = [
    (kind, reentrant)
    for kind in KINDS
    for reentrant in (True, False)
    if kind.name in SWITCHES and not (reentrant and SWITCHES[kind.name] is without_reentrance)
]


def name_of(pair):
    return f"{pair[0].name}-{'reentrant' if pair[1] else 'non-reentrant'}"


@pytest.fixture(params=PAIRS, ids=name_of)
def switched(request):
    """(kind, switch, reentrant) of the libraries that have a switch."""
    kind, reentrant = request.param
    yield kind, SWITCHES[kind.name], reentrant
    from timm.layers import set_reentrant_ckpt

    set_reentrant_ckpt(False)


def loss_of(model, x):
    return model(x).square().sum()


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable")  # renamed by transformers
def test_the_librarys_own_checkpointing(switched):
    """One forward pass; two in flight; r changed before the backward pass; another thread's backward."""
    kind, switch, reentrant = switched
    model, one, two = kind.patched(r=8).train(), images(seed=1), images(2, seed=2)
    alone = gradients(model, loss_of(model, one))
    both = gradients(model, loss_of(model, one) + loss_of(model, two))
    switch(model, reentrant)
    entered = []
    inside = next(kind.blocks(model)[1].children())
    hook = inside.register_forward_pre_hook(lambda *_: entered.append(0))
    close(gradients(model, loss_of(model, one)), alone)
    assert len(entered) == 2  # the forward pass, and its recomputation
    hook.remove()
    close(gradients(model, loss_of(model, one) + loss_of(model, two)), both)
    loss = loss_of(model, one)
    for r in (0, 4, [1, 2, 3]):
        model.r = r
        close(gradients(model, loss), alone)
        model.r = 8
        loss = loss_of(model, one)
    got = []
    thread = threading.Thread(target=lambda: got.append(gradients(model, loss)))
    thread.start()
    thread.join(timeout=60)
    close(got[0], alone)
    assert model.tome.tokens == [kind.num_tokens() - n for n in (8, 16, 24)]


@REENTRANT
def test_checkpoints_around_blocks_with_autocast(vit, reentrant):
    """A recomputation runs under the forward's autocast, and merges what the forward merged."""
    model, x = vit.patched(r=8).float().train(), images().float()

    def loss(checkpointed):
        model.set_grad_checkpointing(checkpointed)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x).float().square().sum()

    expected = gradients(model, loss(False))
    by_timm(model, reentrant)
    try:
        got = gradients(model, loss(True))
    finally:
        by_timm(model, False)
    for name, gradient in expected.items():
        assert torch.equal(got[name], gradient), name


def test_dropout_and_drop_path_are_drawn_again_alike(vit):
    from timm.models.vision_transformer import VisionTransformer

    import tomecore.adapters.torch as tome
    from production.models import seeded

    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4}
    drops = {"drop_path_rate": 0.5, "proj_drop_rate": 0.2, "attn_drop_rate": 0.2}
    model = tome.apply_patch(seeded(VisionTransformer(**sizes, **drops, num_classes=7)), r=8)
    model.train()

    def loss():
        torch.manual_seed(0)
        return loss_of(model, images())

    expected = gradients(model, loss())
    model.set_grad_checkpointing(True)
    close(gradients(model, loss()), expected)


def test_gradients_accumulate_over_batches(kind):
    """The sum of the halves is the whole, since an image merges by itself."""
    model, x = kind.patched(r=8).train(), images(4)
    whole = gradients(model, loss_of(model, x))
    model.zero_grad()
    for half in (x[:1], x[1:]):
        loss_of(model, half).backward()
    close({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, whole)


def test_frozen_models_pass_gradients_on(kind):
    """Prompt tuning, adversarial images: only the input requires a gradient."""
    model, x = kind.patched(r=8).requires_grad_(False), images().requires_grad_()
    loss_of(model, x).backward()
    generator = torch.Generator().manual_seed(5)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        up, down = (loss_of(model, x + step * direction) for step in (1e-6, -1e-6))
    assert float((up - down) / 2e-6) == pytest.approx(float((x.grad * direction).sum()), rel=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda m: m.__name__)
def test_without_gradients(kind, mode):
    model, x = kind.patched(r=8, trace_source=True), images()
    expected = model(x).detach()
    with mode():
        output = model(x)
        assert torch.equal(output, expected)
        assert model.tome.unmerge(model.tome.sizes[:, :, None]).shape[1] == kind.num_tokens()
    assert not output.requires_grad
    assert torch.equal(model(x), expected)  # and back: nothing of that mode was kept
    model.zero_grad()
    loss_of(model, x).backward()


def test_a_region_that_is_checkpointed_by_hand(kind):
    model, x = kind.patched(r=8).train(), images().requires_grad_()
    expected = gradients(model, loss_of(model, x))
    for reentrant in (True, False):
        loss = checkpoint(model, x, use_reentrant=reentrant).square().sum()
        close(gradients(model, loss), expected)


def test_exponential_moving_average(kind):
    """A copy whose weights follow, as in every training script."""
    model = kind.patched(r=8)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss_of(model, images()).backward()
    optimiser.step()
    averaged.update_parameters(model)
    close(averaged(images()), model(images()))
    model.r = 0
    assert averaged.module.r == 8


def test_only_the_last_run_is_kept_alive():
    """A model in use for long does not keep activations of earlier forward passes."""
    import gc
    import weakref

    model = kind_named("timm-vit").patched(r=8)
    kept = []

    def look(module: nn.Module, args, output):
        kept.append(weakref.ref(output.untyped_storage()))

    for block in model.blocks:
        block.register_forward_hook(look)
    for _ in range(3):
        model(images()).sum().backward()
    gc.disable()
    try:
        assert [ref() for ref in kept] == [None] * 9
    finally:
        gc.enable()
