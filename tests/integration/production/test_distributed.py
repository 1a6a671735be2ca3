"""DDP and FSDP2 in two processes: the numbers of one process on the whole batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from production.distributed import OTHERS, PROCESSES, SCENARIOS
from production.models import close, gradients, images, kind_named

ASKED = [("timm-vit", scenario) for scenario in SCENARIOS]
ASKED += [
    (name, scenario)
    for name in ("timm-eva", "torchvision", "transformers-dinov2")
    for scenario in ("ddp_patched_before", "fsdp_patched_before")
]


EVERY = [*ASKED, *(("timm-vit", scenario) for scenario in OTHERS)]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The results of each process. Both start only once, because starting is slow."""
    folder = tmp_path_factory.mktemp("distributed")
    asked = [(name, scenario, kind_named(name).layers, images(4)) for name, scenario in EVERY]
    torch.save(asked, folder / "models")
    for name in {name for name, _ in EVERY}:
        torch.save((kind_named(name).model(),), folder / f"models-{name}")
    command = [sys.executable, "-m", "production.distributed"]
    files = [folder / "store", folder / "models", folder / "answers"]
    paths = ":".join(str(path) for path in (Path(__file__).parent.parent, *sys.path) if path)
    processes = [
        subprocess.Popen(
            [*command, str(rank), *map(str, files)],
            env={"PATH": "", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(PROCESSES)
    ]
    try:
        assert [process.wait(timeout=180) for process in processes] == [0] * PROCESSES
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"answers{rank}") for rank in range(PROCESSES)]


def expected_of(name):
    model, x = kind_named(name).patched(r=8).train(), images(4)
    output = model(x)
    return output.detach(), gradients(model, output.square().sum()), model.tome.tokens


@pytest.mark.parametrize(("name", "scenario"), ASKED)
def test_two_processes_are_one(answers, name, scenario):
    output, expected, tokens = expected_of(name)
    found = [answer[name, scenario] for answer in answers]
    assert [f.get("error") for f in found] == [None] * PROCESSES
    close(torch.cat([f["output"] for f in found]), output)
    for one in found:
        close(one["gradients"], expected)
        assert one.get("tokens", tokens) == tokens


def test_removing_from_a_sharded_model_says_what_to_undo(answers):
    """The model still works as before, although fully_shard has changed the classes since."""
    for answer, half in zip(answers, expected_of("timm-vit")[0].chunk(PROCESSES), strict=True):
        found = answer["timm-vit", "fsdp_r_changed_and_removed"]
        assert "was changed after apply_patch (FSDP2" in found["refused"]
        close(found["after"], half)


def test_mixed_precision(answers):
    """Gradients are reduced in bfloat16, sizes stay exact."""
    for answer in answers:
        found = answer["timm-vit", "fsdp_bfloat16"]
        assert "error" not in found, found
        assert found["tokens"] == [58, 50, 42]
        assert found["sizes"].sum(1).tolist() == [66, 66]
        assert all(gradient.isfinite().all() for gradient in found["gradients"].values())


def test_outputs_of_blocks_that_are_cast_lose_their_sizes_loudly(answers):
    for answer in answers:
        found = answer["timm-vit", "fsdp_outputs_cast"]
        assert found["error"].startswith("LostStateError: ")
        assert "a cast" in found["error"]
