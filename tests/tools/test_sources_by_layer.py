"""Sources after each layer in one forward pass, and the grid of the patches, in both frameworks."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from tomecore.errors import ArgumentValueError, NotPatchedError, UnsupportedModelError
from tomecore.frameworks import predict, to_numpy
from tomecore.visualization._tracing import Grid, patch_grid, sources_by_layer, square_grid

TINY = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 4}
ODD = [3, 0, 30, 5]


@pytest.fixture(params=["torch", "paddle"])
def framework(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((5, 3, 32, 32)).astype("float32")


def build(framework: str, **arguments: Any) -> Any:
    module = importlib.import_module(f"tomecore.models.{framework}")
    adapter = importlib.import_module(f"tomecore.adapters.{framework}")
    model = module.VisionTransformer(**{**TINY, **arguments})
    return adapter.apply_patch(model, trace_source=True)


def test_the_map_after_a_layer_is_that_of_a_schedule_that_ends_there(
    framework: str, images: np.ndarray
) -> None:
    model = build(framework)
    model.r = ODD
    found = sources_by_layer(model, images, batch=2)
    assert len(found) == 4
    for layer, source in enumerate(found, start=1):
        model.r = [r if at < layer else 0 for at, r in enumerate(ODD)]
        predict(model, images)
        np.testing.assert_array_equal(source, to_numpy(model.tome.source))
        assert source.dtype == np.int64
    assert [source.max() + 1 for source in found] == [62, 62, 32, 27]


def test_nothing_merged_is_each_token_where_it_was(framework: str, images: np.ndarray) -> None:
    found = sources_by_layer(build(framework), images)
    assert len(found) == 4
    for source in found:
        np.testing.assert_array_equal(source, np.tile(np.arange(65), (5, 1)))


def test_one_forward_pass_a_batch_and_no_trace_left(framework: str, images: np.ndarray) -> None:
    model = build(framework)
    model.r = 4
    model.train()
    calls: list[int] = []
    register = getattr(model, "register_forward_hook", None) or model.register_forward_post_hook
    hook = register(lambda *_: calls.append(1) if not model.training else None)
    sources_by_layer(model, images, batch=3)
    hook.remove()
    assert len(calls) == 2
    assert model.training
    assert model._tome.observers == ()


def test_what_cannot_be_followed_is_refused(framework: str, images: np.ndarray) -> None:
    adapter = importlib.import_module(f"tomecore.adapters.{framework}")
    with pytest.raises(ArgumentValueError, match="`images` must not be empty"):
        sources_by_layer(build(framework), images[:0])
    bare = adapter.remove_patch(build(framework))
    with pytest.raises(NotPatchedError, match="is not patched; call apply_patch first"):
        sources_by_layer(bare, images)
    with pytest.raises(NotPatchedError, match="is not patched; call apply_patch first"):
        patch_grid(bare, 65, (32, 32))


def test_several_sequences_of_one_image_are_refused(images: np.ndarray) -> None:
    import torch

    class Halves(torch.nn.Module):
        """Cuts each image in two, as models of tiles do."""

        def __init__(self) -> None:
            super().__init__()
            self.vit = build("torch", img_size=16)

        def forward(self, x: Any) -> Any:
            return self.vit(torch.cat([x[..., :16, :16], x[..., :16, 16:]]))

    model = Halves()
    adapter = importlib.import_module("tomecore.adapters.torch")
    adapter.remove_patch(model.vit)
    adapter.apply_patch(model, r=2)
    with pytest.raises(UnsupportedModelError, match="builds 10 sequences of tokens from 5 images"):
        sources_by_layer(model, images)


def test_the_grid_is_that_of_the_patch_embedding(framework: str) -> None:
    assert patch_grid(build(framework), 65, (32, 32)) == Grid(8, 8, (4, 4))


def test_patches_that_are_no_squares_are_asked_of_the_model() -> None:
    """As many patches as with 4 x 4 pixels: their number by itself would be misread."""
    model = build("torch")
    import torch

    model.patch_embed.proj = torch.nn.Conv2d(3, 32, kernel_size=(2, 8), stride=(2, 8))
    assert patch_grid(model, 65, (32, 32)) == Grid(16, 4, (2, 8))


@pytest.mark.parametrize(
    ("patches", "size", "grid"),
    [
        (196, (224, 224), Grid(14, 14, (16, 16))),
        (12 * 20, (192, 320), Grid(12, 20, (16, 16))),
        (729, (384, 384), Grid(27, 27, (14, 14))),  # 6 pixels are left over
        (1, (30, 30), Grid(1, 1, (30, 30))),
    ],
)
def test_squares_by_their_number(patches: int, size: tuple[int, int], grid: Grid) -> None:
    assert square_grid(patches, size) == grid


@pytest.mark.parametrize(
    ("patches", "size", "why"),
    [
        (
            197,
            (224, 224),
            "197 patches from an image of 224 x 224 pixels.*no grid of square patches",
        ),
        (9, (224, 224), "squares of 57 or 58 or .* pixels would give as many"),
    ],
)
def test_a_grid_that_cannot_be_told_is_refused(
    patches: int, size: tuple[int, int], why: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=why):
        square_grid(patches, size)
