"""Each example runs, on few images, and does what it says. ``custom_block.py`` is run by
``tests/adapters/test_own_blocks.py``."""

from __future__ import annotations

import functools
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import most_similar

from tomecore import backends, matching

EXAMPLES = Path(__file__).parents[2] / "examples"
FRAMEWORKS = pytest.mark.parametrize("framework", ["torch", "paddle"])


def example(name):
    return runpy.run_path(str(EXAMPLES / name))


def test_every_example_has_a_test():
    tested = {"custom_block.py", "custom_backend.py", "dense_features.py"}
    tested |= {"finetune_torch.py", "finetune_paddle.py", "vggt_global_attention.py"}
    tested |= {"pitome_forms.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


def test_forms_of_pitome(capsys):
    """Each form is another function, and the two halves of DeiT and MAE are each other's."""
    found = example("pitome_forms.py")
    found["main"]()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("[")[0].strip() for line in lines] == list(found["FORMS"])
    assert all("[57, 49, 41, 33] tokens" in line for line in lines)
    keys = np.random.default_rng(0).normal(size=(2, 20, 6))

    def slots(form, layer):
        context = matching.Context(keys, protected=1, layer=layer, num_layers=4)
        return form(keys, 6, context).slots

    for layer in range(4):
        bsm, pure = (
            slots(functools.partial(matching.pitome, form=form), layer) for form in ("bsm", "pure")
        )
        assert (bsm != pure).any()
        deit, mae = (bsm, pure) if layer < 2 else (pure, bsm)
        np.testing.assert_array_equal(slots(found["as_in_deit"], layer), deit)
        np.testing.assert_array_equal(slots(found["as_in_mae"], layer), mae)


@FRAMEWORKS
def test_fine_tuning(framework, tmp_path, capsys):
    path = tmp_path / "results" / "found.json"
    path.parent.mkdir()
    path.write_text('{"another": 1}')
    main = example(f"finetune_{framework}.py")["main"]
    main(["--speedups", "5", "--images", "32", "--batch", "16", "--json", str(path)])
    found = json.loads(path.read_text())
    assert found["another"] == 1  # old entries stay
    unpatched, merging = found[framework]["rows"]
    assert (unpatched["speedup"], merging["speedup"]) == (1.0, 5.0)
    assert unpatched["r"] == []
    assert 197 - sum(merging["r"]) == merging["tokens_left"] == 3
    for row in (unpatched, merging):
        assert row["off_the_shelf"] > 0.9
        assert row["finetuned"] > 0.9
    assert found[framework]["images"] == 32
    assert "32 digits to train on, 32 held out" in capsys.readouterr().out


@FRAMEWORKS
def test_fine_tuning_changes_the_weights(framework):
    """The rows differ by training, not by running the same model twice."""
    from tomecore import loading
    from tomecore.frameworks import predict
    from tomecore.models import digits

    names = example(f"finetune_{framework}.py")
    images, labels = (array[:16] for array in digits.load("train"))
    model = loading.load(f"digits:{framework}").model
    before = predict(model, images)
    names["finetune"](model, images, labels, epochs=2, batch=8, lr=1e-3, seed=0)
    after = predict(model, images)
    assert np.abs(after - before).max() > 0.1
    assert not model.training


def test_the_same_in_both_frameworks():
    """The two scripts differ in their training step: the same settings, images and rows around it."""
    torch, paddle = (
        (EXAMPLES / f"finetune_{name}.py")
        .read_text()
        .partition("def run(")[2]
        .replace(name, "NAME")
        for name in ("torch", "paddle")
    )
    assert torch == paddle


@FRAMEWORKS
def test_dense_features(framework, capsys):
    example("dense_features.py")["main"](["--framework", framework, "--images", "12"])
    said = capsys.readouterr().out
    assert "(12, 96, 14, 14)" in said
    rows = [
        line.split() for line in said.splitlines() if line.strip()[:2] in ("0 ", "8 ", "13", "15")
    ]
    assert [row[:2] for row in rows] == [["0", "197"], ["8", "101"], ["13", "41"], ["15", "17"]]
    right = [float(row[2].rstrip("%")) for row in rows]
    assert right[0] > 90
    assert all(one > 80 for one in right)
    assert "block 5: (8, 96, 14, 14)" in said


def test_global_attention(capsys):
    names = example("vggt_global_attention.py")
    names["main"](["--frames", "4", "--grid", "6", "8"])
    tokens, pairs, likeness = capsys.readouterr().out.splitlines()
    assert tokens == "212 tokens, 116 while they attend"
    assert pairs == "pairs in attention: 29.9%"
    assert float(likeness.split()[-1]) > 0.95


def fastvggt(y, frames, height, width, prefix, draw):
    """Its rule for one sample y (N, C), in loops: the destination of each token that merges.

    ``draw[frame][i][j]`` is the position of the destination in a cell. The protected tokens, every tenth,
    do not merge. The published code returns those that are destinations twice.
    """
    size = prefix + height * width
    destinations = []
    for frame in range(frames):
        for token in range(size):
            row, column = divmod(token - prefix, width)
            whole_cell = row < height // 2 * 2 and column < width // 2 * 2
            chosen = whole_cell and draw[frame][row // 2][column // 2] == row % 2 * 2 + column % 2
            if frame == 0 or token < prefix or chosen:
                destinations.append(frame * size + token)
    into = {}
    for token in range(frames * size):
        if token not in destinations and token % 10 != 0:
            into[token] = destinations[most_similar(y, token, destinations)[0]]
    return into


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7)], ids=str)
def test_global_attention_follows_the_rule_of_fastvggt(height, width):
    """The same tokens merge, into the same tokens, and attention runs on their means."""
    torch.manual_seed(0)
    frames, prefix = 3, 2
    names = example("vggt_global_attention.py")
    match = names["FrameMatching"](frames, (height, width), prefix)
    block = names["GlobalAttention"](24, 2).double().eval()
    size = prefix + height * width
    x = torch.randn(2, frames * size, 24, dtype=torch.float64)
    y = block.norm(x)
    plan = match(y)
    shape = frames, height // 2, width // 2
    draw = np.random.default_rng(33).integers(4, size=shape).tolist()
    for sample in range(2):
        into = fastvggt(y[sample].detach().numpy(), frames, height, width, prefix, draw)
        kept = [token for token in range(frames * size) if token not in into]
        assert plan.kept[sample].tolist() == kept
        found = zip(plan.merged[sample].tolist(), plan.into[sample].tolist(), strict=True)
        assert {token: kept[slot] for token, slot in found} == into
        groups = [[token, *(t for t, d in into.items() if d == token)] for token in kept]

        q, k, v = block.qkv(y[sample]).chunk(3, dim=-1)
        q = block.q_norm(q.unflatten(-1, (2, 12))).flatten(-2)
        k = block.k_norm(k.unflatten(-1, (2, 12))).flatten(-2)
        q, k, v = (torch.stack([one[g].mean(dim=0) for g in groups]) for one in (q, k, v))
        heads = []
        for head in range(2):
            of = slice(12 * head, 12 * head + 12)
            weights = torch.softmax(q[:, of] @ k[:, of].T / 12**0.5, dim=-1)
            heads.append(weights @ v[:, of])
        out = block.proj(torch.cat(heads, dim=-1))
        slots = [kept.index(into.get(token, token)) for token in range(frames * size)]
        wanted = x[sample] + block.scale * out[slots]
        torch.testing.assert_close(block(x, match)[sample], wanted, rtol=1e-10, atol=1e-12)


def test_global_attention_of_all_tokens():
    """If nothing merges, the block is the one without merging."""
    names = example("vggt_global_attention.py")
    match = names["FrameMatching"](1, (4, 4), 2)  # the only frame is the first
    block = names["GlobalAttention"](24, 2).double().eval()
    x = torch.randn(2, 18, 24, dtype=torch.float64)
    assert match(x).num_merged == 0
    torch.testing.assert_close(block(x, match), block(x), rtol=1e-12, atol=1e-12)


def test_custom_backend(capsys, monkeypatch):
    monkeypatch.setattr(backends, "_known", dict(backends._known))
    example("custom_backend.py")["main"]()
    said = capsys.readouterr().out
    assert "197 -> 181 of MyArray" in said
    assert "to the last bit: True" in said
    assert "sizes sum to the original number of tokens: 197.0" in said
    assert "scatters by mylib: 3" in said
    backends._by_type.clear()


def test_an_example_is_a_script():
    """Run as its own first lines say."""
    path = EXAMPLES / "custom_backend.py"
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True)
    assert "scatters by mylib: 3" in done.stdout
