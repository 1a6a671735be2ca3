"""``tomecore.evaluation.evaluate`` on arrays and on models of every kind of output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from digit_files import FLIPPING, STEEP

import tomecore.adapters.torch as tome
from tomecore import schedule
from tomecore.errors import ArgumentTypeError, ArgumentValueError, TomeError
from tomecore.evaluation import Result, draw, evaluate
from tomecore.evaluation._result import count_chunk
from tomecore.frameworks import logits_of, predict
from tomecore.models import digits
from tomecore.models.torch import VisionTransformer

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def trained() -> Any:
    return digits.build("torch")


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    images, labels = digits.load("test")
    chosen = [*FLIPPING, *range(17)]
    return images[chosen], labels[chosen]


def small(classes: int = 3) -> Any:
    torch.manual_seed(0)
    return VisionTransformer(num_classes=classes, **SMALL)


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 16, 16)).astype(np.float32)


def counts(result: Result) -> list[tuple[Any, ...]]:
    return [(row.r, row.right, row.right5, row.same, row.tokens) for row in result.rows]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_an_interrupted_run_ends_with_the_same_counts(
    trained: Any, data: Any, tmp_path: Path, stop_at: int
) -> None:
    images, labels = data
    whole = evaluate(trained, images, labels, [STEEP, 8], batch=8)
    assert 0 < whole.rows[1].same < len(images)

    def interrupt(done: int, total: int) -> None:
        assert total == len(images)
        if done == 8 * stop_at:
            raise Interrupted

    path, seen = tmp_path / "record.jsonl", []
    with pytest.raises(Interrupted):
        evaluate(trained, images, labels, [STEEP, 8], batch=8, resume=path, progress=interrupt)
    again = evaluate(
        *(trained, images, labels, [STEEP, 8]),
        **{"batch": 8, "resume": path, "progress": lambda done, total: seen.append(done)},
    )
    assert counts(again) == counts(whole)
    assert again.images == whole.images == 21
    assert seen == [8 * at for at in range(stop_at, 3)] + [21]  # nothing is run twice


def test_a_finished_record_runs_nothing(
    trained: Any, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = data
    path = tmp_path / "record.jsonl"
    first = evaluate(trained, images[:8], labels[:8], [8], batch=4, resume=path)
    monkeypatch.setattr("tomecore.evaluation._batch.Runner.run", None)
    assert evaluate(trained, images[:8], labels[:8], [8], batch=4, resume=path) == first


def test_a_record_of_another_run_is_refused(data: Any, tmp_path: Path) -> None:
    path, images = tmp_path / "record.jsonl", noise(4)
    evaluate(small(), images, [0, 1, 2, 0], [2], batch=2, resume=path, name="a")
    before = path.read_bytes()
    other = small()
    torch.nn.init.ones_(other.head.bias)
    for model, x, labels, r, changed, what in (
        (small(), images, [0, 1, 2, 0], [3], {}, "r:"),
        (small(), images, [0, 1, 2, 1], [2], {}, "labels:"),
        (small(), -images, [0, 1, 2, 0], [2], {}, "data:"),
        (small(), images, [0, 1, 2, 0], [2], {"batch": 3}, "batch: 2 there, 3 here"),
        (small(), images, [0, 1, 2, 0], [2], {"name": "b"}, "name: 'a' there, 'b' here"),
        (other, images, [0, 1, 2, 0], [2], {}, "weights: .*random each time"),
    ):
        options = {"batch": 2, "name": "a", **changed}
        with pytest.raises(ArgumentValueError, match=rf"to another run \({what}"):
            evaluate(model, x, labels, r, resume=path, **options)
    path.write_text("something else\n")
    with pytest.raises(ArgumentValueError, match="not written by an evaluation"):
        evaluate(small(), images, [0, 1, 2, 0], [2], batch=2, resume=path)
    path.write_bytes(before[:30])  # cut off in its first line: started again
    evaluate(small(), images, [0, 1, 2, 0], [2], batch=2, resume=path, name="a")
    assert path.read_bytes().splitlines()[0] == before.splitlines()[0]
    path.write_text("no line")
    with pytest.raises(ArgumentValueError, match="not written by an evaluation"):
        evaluate(small(), images, None, [2], resume=path)
    assert path.read_text() == "no line"


def test_the_model_is_left_as_it_was() -> None:
    model = small().train()
    expected = predict(model, noise(3))
    evaluate(model, noise(3), None, [4])
    assert model.training
    assert type(model) is VisionTransformer
    assert not hasattr(model, "tome")
    np.testing.assert_array_equal(predict(model, noise(3)), expected)
    tome.apply_patch(model, r=(2, 1))
    evaluate(model, noise(3), None, [4])
    assert model.r == (2, 1)


def test_every_r_is_run_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [schedule.Ratio(0.5), (2, -1), [8], 0, 3]
    result = evaluate(small(), noise(5), None, asked, batch=1)
    assert [row.r for row in result.rows] == [0, schedule.Ratio(0.5), (2, -1), [8], 3]
    assert [row.tokens for row in result.rows] == [17, 5, 13, 9, 11]
    assert result.rows[0].limit == 1
    assert all(row.limit > 1 for row in result.rows[1:])
    assert result.rows[0].speedup == 1
    assert json.loads(json.dumps(result.as_dict()))["rows"][2]["r"] == [2, -1]


@pytest.mark.parametrize(
    ("count", "batch", "timed", "real"), [(5, 2, 2, 2), (6, 2, 3, 2), (2, 32, 1, 2)]
)
def test_too_few_batches_have_no_speed(
    count: int, batch: int, timed: int, real: int, tmp_path: Path
) -> None:
    result = evaluate(small(), noise(count), None, [2], batch=batch)
    assert (result.timed, result.batch) == (timed, real)
    for row in result.rows:
        assert (row.images_per_second is not None) == (row.speedup is not None) == (timed >= 3)
    draw(result, tmp_path / "plot.png")
    with pytest.raises(ArgumentValueError, match=r"`path`: there is no folder .*none; create it"):
        draw(result, tmp_path / "none" / "plot.png")


def test_top_five_from_six_classes_on() -> None:
    for classes, known in ((5, False), (6, True)):
        row = evaluate(small(classes), noise(4), [0, 1, 2, 3], [2]).rows[0]
        assert (row.top5 is not None) is known
        assert row.top1 is not None


def test_counting_a_batch() -> None:
    first = np.asarray([[1.0, 3, 2, 0, -1, -2], [4, 4, 0, 0, 0, 0], [0, 1, 2, 3, 4, np.nan]])
    other = np.asarray([[9.0, 3, 2, 0, -1, -2], [0, 4, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5]])
    found = count_chunk([first, other], np.asarray([0, 1, 5]))
    assert found == {
        "classes": 6,
        "right": [0, 3],  # of two equal outputs the first is the larger, as for argmax
        "right5": [2, 3],
        "same": [2, 0],
        "undefined": [1, 0],
    }
    assert "right" not in count_chunk([first, other], None)


class Wrapped(VisionTransformer):
    """A model whose output is something around its logits."""

    around: Any = staticmethod(lambda logits: logits)

    def forward(self, x: Any) -> Any:
        return self.around(super().forward(x))


class WithLogits:
    def __init__(self, logits: Any) -> None:
        self.logits = logits


@pytest.mark.filterwarnings("ignore::tomecore.errors.ClampWarning")
@pytest.mark.parametrize(
    "around", [lambda y: y, WithLogits, lambda y: (y, None), lambda y: [y, y + 1]]
)
def test_outputs_of_every_kind(around: Any) -> None:
    torch.manual_seed(0)
    model = Wrapped(num_classes=3, **SMALL)
    expected = counts(evaluate(model, noise(4), [0, 1, 2, 0], [6]))
    model.around = around
    assert counts(evaluate(model, noise(4), [0, 1, 2, 0], [6])) == expected


@pytest.mark.parametrize(
    ("around", "kind", "message"),
    [
        (lambda y: y[:, None], ArgumentValueError, r"for 4 images it gave \(4, 1, 3\)"),
        (lambda y: y[:, :1], ArgumentValueError, "at least two classes"),
        (lambda y: y.mean(0, keepdim=True), ArgumentValueError, r"it gave \(1, 3\)"),
        (lambda y: {"features": y}, ArgumentTypeError, "it returned builtins.dict"),
        (lambda y: (), ArgumentTypeError, "it returned builtins.tuple"),
        (lambda y: (None, y), ArgumentTypeError, "with a head for classes"),
    ],
)
def test_outputs_that_are_no_classes(around: Any, kind: Any, message: str) -> None:
    model = Wrapped(num_classes=3, **SMALL)
    model.around = around
    with pytest.raises(kind, match=message):
        evaluate(model, noise(4), None, [2])


def test_models_of_transformers() -> None:
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=16,
        patch_size=4,
        num_labels=4,
    )
    model = ViTForImageClassification(config).eval()
    labels = predict(model, noise(4)).argmax(-1)
    result = evaluate(model, noise(4), labels, [4])
    assert [row.tokens for row in result.rows] == [17, 9]
    assert result.rows[0].top1 == 1
    with pytest.raises(ArgumentTypeError, match="a head for classes"):
        logits_of({"pooled": 1})
    with pytest.raises(ArgumentTypeError, match=r"BaseModelOutputWithPooling.*head for classes"):
        evaluate(ViTModel(config), noise(4), None, [4])


def test_outputs_that_are_not_numbers_are_counted() -> None:
    model = small()
    images = noise(4)
    images[1] = np.nan
    result = evaluate(model, images, predict(model, images).argmax(-1), [2])
    assert [row.undefined for row in result.rows] == [1, 1]
    assert result.rows[0].right == 3
    assert result.rows[0].agreement == 0.75


class Hostile:
    """Images of which some cannot be read."""

    def __init__(self, images: np.ndarray, broken: set[int]) -> None:
        self.images, self.broken = images, broken

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        if index in self.broken:
            raise ArgumentValueError(f"image {index} is broken")
        return self.images[index]

    def __iter__(self) -> Iterator[np.ndarray]:
        raise AssertionError("images are read one at a time, by index")


def test_unreadable_images_are_left_out() -> None:
    model, images = small(), noise(9)
    labels = predict(model, images).argmax(-1)
    labels[[2, 5]] = 0
    labels[6] = (labels[6] + 1) % 3
    result = evaluate(model, Hostile(images, {2, 4, 5}), labels, [2], batch=2)
    assert result.images == 6
    assert result.unreadable == tuple((i, f"image {i} is broken") for i in (2, 4, 5))
    assert result.rows[0].right == 5
    with pytest.raises(TomeError, match="none of 9 images could be read; the first: image 0 is"):
        evaluate(model, Hostile(images, set(range(9))), labels, [2], batch=2)
    with pytest.raises(
        ArgumentTypeError, match=r"`images` must be an array or have a method digest"
    ):
        evaluate(model, Hostile(images, set()), labels, [2], resume="record.jsonl")


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (noise(0), None, {}, "`images` is empty"),
        (noise(2), [0], {}, "one number for each of the 2 images"),
        (noise(2), [0, -1], {}, "classes from 0; got -1"),
        (noise(2), [0, 3], {}, "`labels` holds 3, but .* 3 classes from 0 to 2"),
        (noise(2), [0, 1], {"batch": 0}, "`batch` must be an integer of at least 1"),
        (noise(2), [0, 1], {"amp": "fp8"}, "`amp` must be bf16, fp16 or None"),
        ([noise(1)[0], noise(1)[0][:, :8]], [0, 1], {}, "must have one shape"),
    ],
)
def test_arguments(images: Any, labels: Any, options: dict[str, Any], message: str) -> None:
    model = small()
    with pytest.raises(ArgumentValueError, match=message):
        evaluate(model, images, labels, [2], **options)
    assert not hasattr(model, "tome")


def test_labels_are_integers() -> None:
    with pytest.raises(ArgumentTypeError, match="`labels` must be integers; got float64"):
        evaluate(small(), noise(2), [0.0, 1.0], [2])
