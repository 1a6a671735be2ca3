"""Saving, copying and loading patched models, in this process and in a fresh one."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tomecore.adapters.torch as tome
from production.models import KINDS, close, gradients, images

#: Loads models and answers with their outputs, knowing nothing of how they were patched.
LOAD = """
import sys, torch
torch.set_num_threads(1)
file, answers = sys.argv[1:]
found = []
for model, x in torch.load(file, weights_only=False):
    r, output = model.r, model(x).detach()
    tokens, sizes, source = model.tome.tokens, model.tome.sizes, model.tome.source
    model.r = 0
    found.append([r, output, tokens, sizes, source, model(x).detach()])
torch.save(found, answers)
"""


@torch.no_grad()
def test_a_fresh_process_loads_patched_models(tmp_path):
    """Every library, new and in use; it need not import tomecore, and even less patch."""
    x, saved = images(), []
    for kind, used in itertools.product(KINDS, [False, True]):
        model = kind.patched(r=[8, 0, 5], trace_source=True)
        if used:
            model(x)
        saved.append((model, x))
    torch.save(saved, tmp_path / "models")
    paths = ":".join(str(path) for path in (Path(__file__).parent.parent, *sys.path) if path)
    subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "models", tmp_path / "answers"],
        check=True,
        timeout=120,
        env={"PATH": "", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    answers = torch.load(tmp_path / "answers")
    for (model, _), answer in zip(saved, answers, strict=True):
        r, output, tokens, sizes, source, unmerged = answer
        assert r == [8, 0, 5]
        close(output, model(x))
        assert tokens == model.tome.tokens
        assert torch.equal(sizes, model.tome.sizes)
        assert torch.equal(source, model.tome.source)
        close(unmerged, tome.remove_patch(model)(x))


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: through_torch(model),
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_a_copy_of_a_model_in_use_is_another_model(kind, duplicate):
    """After a forward and a backward pass, with the graph of a second one still alive."""
    model, x = kind.patched(r=8), images()
    expected = gradients(model, model(x).square().sum())
    alive = model(x).square().sum()
    other = duplicate(model)
    other.r = 4
    close(other(x), kind.patched(r=4)(x))
    assert other.tome.tokens == [kind.num_tokens() - n for n in (4, 8, 12)]
    assert model.tome.tokens == [kind.num_tokens() - n for n in (8, 16, 24)]
    close(gradients(model, alive), expected)
    other.r = 8
    close(gradients(other, other(x).square().sum()), expected)
    tome.remove_patch(other)
    close(other(x), kind.model()(x))
    close(gradients(model, model(x).square().sum()), expected)


def through_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@torch.no_grad()
def test_weights_move_between_patched_and_plain_models(kind):
    """The keys are the library's own, in both directions and with weights_only."""
    patched, plain, x = kind.patched(r=8, seed=1), kind.model(seed=2), images()
    patched(x)
    file = io.BytesIO()
    torch.save(patched.state_dict(), file)
    file.seek(0)
    plain.load_state_dict(torch.load(file, weights_only=True))
    close(tome.apply_patch(plain, r=8)(x), patched(x))
    patched.load_state_dict(kind.model(seed=3).state_dict())
    close(patched(x), kind.patched(r=8, seed=3)(x))


def test_an_activation_is_saved_without_what_rides_on_it(vit, tmp_path):
    """Weights-only files of activations stay readable, and a copy of one refers to no model."""
    model, caught = vit.patched(r=8), []
    model.blocks[1].register_forward_hook(lambda module, args, output: caught.append(output))
    model(images())
    torch.save(caught[0].detach(), tmp_path / "activation")
    assert torch.equal(torch.load(tmp_path / "activation", weights_only=True), caught[0])
    assert (tmp_path / "activation").stat().st_size < 100_000
