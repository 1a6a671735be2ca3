"""Write a file, run it next to the model that it comes from, and keep it only if both agree."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tomecore.adapters import is_patched
from tomecore.benchmark import interleave, median_ratio
from tomecore.core.checks import check_writable, whole_number
from tomecore.errors import ArgumentTypeError, ArgumentValueError, TomeError
from tomecore.exporting._result import Exported, Speed
from tomecore.exporting._runtimes import FORMATS, check_installed, cores, run_file
from tomecore.frameworks import evaluating, framework_of, logits_of, to_numpy, to_tensor
from tomecore.loading import Loaded, merging, shape_errors
from tomecore.schedule import R

__all__ = ["export"]

Run = Callable[[np.ndarray], np.ndarray]

#: the batch sizes of the check; the graph is traced with another one
_BATCHES = (1, 3)
_TRACED = 2
#: largest difference to the model in its framework, relative to the largest output
_CLOSE = 1e-3
#: largest difference of outputs that come from the same numbers, relative to the largest output
_SAME = 1e-6
#: one of this many images may differ by more, if its output has about the same direction: similarities that
#: differ by rounding only may decide differently
_FLIPS, _ALIKE = 4, 0.99


def export(
    model: Any,
    path: Path | str,
    *,
    r: R | None = None,
    images: np.ndarray | None = None,
    shape: tuple[int, int, int] | None = None,
    projection: bool = True,
    field: str | None = None,
    names: tuple[str, str] = ("images", "features"),
    opset: int | None = None,
    format: str = "onnx",
    force: bool = False,
    batch: int = 1,
    rounds: int = 5,
) -> Exported:
    """Export a model that merges tokens to a file, for any batch size, and check the file.

    ONNX Runtime (or OpenVINO) runs the file at two batch sizes, next to the model in its own framework. If
    they differ, the file is removed. Its input is (n, C, H, W) float32, normalised as the model needs it. r
    and the size of images are fixed in the file.

    Args:
        model: a model of torch or Paddle, or a :class:`tomecore.loading.Loaded`. Of a CLIP, the vision tower
            is exported. The model is patched if it is not yet, and afterwards it is as before.
        path: the file to write, ``.onnx``, or ``.xml`` for OpenVINO. Its folder must exist.
        r: tokens to merge per layer; 0 exports the model without merging. None: the r of a patched model.
        images: (n, C, H, W) float32, as the model takes them, for the check and for the cosine to the model
            without merging. None: random ones, for which that cosine says little.
        shape: (C, H, W) of one image; needed only without ``images``, if ``model`` is not a ``Loaded``.
        projection: whether the features of a CLIP are projected to the space that it shares with texts.
        field: the field to export if the model returns several, such as "last_hidden_state". None: the first
            of logits, image_embeds, pooler_output and last_hidden_state.
        names: names of the input and of the output in the file.
        opset: version of ONNX's operators; None: the exporter's choice.
        format: "onnx" or "openvino".
        force: overwrite an existing file.
        batch: images in each timed run.
        rounds: timed rounds, next to a file without merging, on one thread and on all; 0: no timing.

    Raises:
        ArgumentValueError: an argument is not allowed, the model does not accept images of this shape, the
            folder is missing, or the file exists.
        ArgumentTypeError: ``images`` is not an array, or another argument has the wrong type.
        TomeError: a package is missing, the model cannot be exported, or the file computes something else.
        UnsupportedModelError: the model cannot be patched.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"`path` must be the name of a file; got {path!r}")
    path = Path(path)
    _check_path(path, format, force)
    tower = model.model if isinstance(model, Loaded) else model
    whole = (model.whole or tower) if isinstance(model, Loaded) else model
    framework = framework_of(tower)
    if r is None and not is_patched(tower):
        raise ArgumentValueError("`r` is None, and the model is not patched; pass r, such as r=8")
    batch = whole_number(batch, "batch", 1, unit="images")
    rounds = whole_number(rounds, "rounds")
    opset = None if opset is None else whole_number(opset, "opset", 1)
    _check_names(names)
    if not (field is None or isinstance(field, str)):
        raise ArgumentTypeError(f"`field` must be the name of a field; got {field!r}")
    if framework == "paddle" and not (projection and field is None):
        raise ArgumentValueError(
            "`projection` and `field` are for torch; a Paddle model is exported with its first output"
        )
    check_installed(format, framework)
    _check_dtype(whole)
    given = images is not None
    shape = model.input_shape if shape is None and isinstance(model, Loaded) else _shape(shape)
    images = _images(images, shape)
    every_threads = sorted({1, cores()})  # read now, because a runtime may change it

    with contextlib.ExitStack() as stack:
        merged = stack.enter_context(merging(tower, r))
        stack.enter_context(evaluating(whole))
        run, write = _forms(stack, framework, whole, projection, field, names, opset)
        folder = Path(stack.enter_context(_folder_next_to(path)))
        with shape_errors(images.shape[1:]):
            expected = _in_batches(run, images)
        constant = _check_outputs(expected)
        handle = merged.tome
        entered, left, schedule = handle.num_tokens, handle.tokens[-1], merged.r
        limit = handle.arithmetic.limit(entered, schedule)
        with merging(merged, 0):
            unmerged = run(images)
        if framework == "torch" and not constant and _reads_few(handle, run, images, expected):
            stack.enter_context(handle.without_restoring())
        written = _write(write, images, folder / path.name, format)
        difference, flips = _compare(expected, _in_batches(run_file(written[0], 1), images), path)
        cosine = ()
        if unmerged.shape == expected.shape:  # not if merged tokens are returned
            cosine = tuple(_cosine(unmerged, run_file(written[0], 1)(images)).tolist())
        speeds: tuple[Speed, ...] = ()
        if left < entered and rounds:
            (folder / "unmerged").mkdir()
            with merging(merged, 0):
                plain = _write(write, images, folder / "unmerged" / path.name, format)[0]
            timed = np.resize(images, (batch, *images.shape[1:]))
            speeds = tuple(
                _time(plain, written[0], timed, threads, rounds) for threads in every_threads
            )
        size = sum(one.stat().st_size for one in written)
        for one in written:
            os.replace(one, path.parent / one.name)
        return Exported(
            path=path,
            others=tuple(path.parent / one.name for one in written[1:]),
            size=size,
            r=schedule,
            limit=limit,
            tokens=entered,
            tokens_left=left,
            batches=_BATCHES,
            difference=difference,
            near_ties=flips,
            checked=len(images),
            cosine=cosine,
            constant=constant,
            given=given,
            speeds=speeds,
        )


def _check_path(path: Path, form: str, force: bool) -> None:
    if form not in FORMATS:
        raise ArgumentValueError(f"`format` must be one of {', '.join(FORMATS)}; got {form!r}")
    ending = FORMATS[form][0]
    if path.suffix != ending:
        raise ArgumentValueError(f"`path` must end in {ending} for {form}; got {path}")
    check_writable(path, "path")
    if path.exists() and not force:
        raise ArgumentValueError(
            f"`path` {path} exists; give another name, or overwrite it with force=True (--force)"
        )


def _shape(shape: Any) -> tuple[int, int, int] | None:
    """Return (C, H, W) as integers, or None."""
    if shape is None:
        return None
    if not isinstance(shape, tuple | list) or len(shape) != 3:
        raise ArgumentValueError(
            f"`shape` must be the (C, H, W) of an image, such as (3, 224, 224); got {shape!r}"
        )
    channels, height, width = (whole_number(side, "shape", 1) for side in shape)
    return channels, height, width


def _check_names(names: Any) -> None:
    texts = isinstance(names, tuple | list) and all(isinstance(one, str) for one in names)
    if not texts or len(names) != 2 or not all(names) or names[0] == names[1]:
        raise ArgumentValueError(
            f"`names` must be two different names, of input and output; got {names!r}"
        )


def _check_dtype(model: Any) -> None:
    """Raise unless the model computes in float32, which is what the file takes."""
    dtype = str(next(iter(model.parameters())).dtype).rpartition(".")[2]
    if dtype != "float32":
        raise ArgumentValueError(
            f"`model` must have weights in float32 to be exported; got {dtype}. Export model.float(), and "
            "convert the file if you need another type"
        )


def _images(images: np.ndarray | None, shape: tuple[int, int, int] | None) -> np.ndarray:
    """Return the images of the check, at least as many as the two batches need."""
    needed = sum(_BATCHES)
    if images is None:
        if shape is None:
            raise ArgumentValueError(
                "`shape` is needed to export a model: pass the (C, H, W) of an image, such as "
                "shape=(3, 224, 224), or `images`"
            )
        return np.random.default_rng(0).standard_normal((needed, *shape)).astype(np.float32)
    if not isinstance(images, np.ndarray):
        raise ArgumentTypeError(
            f"`images` must be a NumPy array (n, C, H, W); got {type(images).__name__}"
        )
    if images.ndim != 4 or not len(images):
        raise ArgumentValueError(f"`images` must have shape (n, C, H, W); got {images.shape}")
    if shape is not None and images.shape[1:] != tuple(shape):
        raise ArgumentValueError(
            f"`images` must be of shape {tuple(shape)} each, as the model takes them; got {images.shape[1:]}"
        )
    repeated = np.arange(max(needed, len(images))) % len(images)
    return np.ascontiguousarray(images[repeated], dtype=np.float32)


def _forms(
    stack: contextlib.ExitStack,
    framework: str,
    whole: Any,
    projection: bool,
    field: str | None,
    names: tuple[str, str],
    opset: int | None,
) -> tuple[Run, Callable[[np.ndarray, Path], None]]:
    """Return the model as a function of arrays, and a function that writes its graph to a file."""
    if framework == "paddle":
        from tomecore.exporting import _paddle

        def write_paddle(images: np.ndarray, path: Path) -> None:
            _paddle.write_onnx(whole, images.shape[1:], path, names=names, opset=opset)

        return lambda images: to_numpy(logits_of(whole(to_tensor(whole, images)))), write_paddle
    from tomecore.exporting import _torch

    called = whole if projection else stack.enter_context(_torch.without_projection(whole))
    features = _torch.Features(called, field).eval()

    def write(images: np.ndarray, path: Path) -> None:
        example = to_tensor(called, np.resize(images, (_TRACED, *images.shape[1:])))
        _torch.write_onnx(features, example, path, names=names, opset=opset)

    return lambda images: to_numpy(features(to_tensor(called, images))), write


@contextlib.contextmanager
def _folder_next_to(path: Path) -> Iterator[str]:
    """Yield a new folder on the same disk, so that a checked file can be moved; it disappears at the end."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".tomecore-export-") as folder:
        yield folder


def _check_outputs(expected: np.ndarray) -> bool:
    """Return whether all images have the same output; raise if it has NaN or infinity."""
    if not np.isfinite(expected).all():
        bad = int((~np.isfinite(expected.reshape(len(expected), -1)).all(axis=1)).sum())
        raise TomeError(
            f"`model` itself returns NaN or infinity for {bad} of {len(expected)} images of the check, so "
            "its file cannot be compared with it; check the images and the weights"
        )
    return bool((expected == expected[:1]).all())


def _reads_few(handle: Any, run: Run, images: np.ndarray, expected: np.ndarray) -> bool:
    """Whether the output is the same if tokens are not restored: then the graph need not follow them."""
    try:
        with handle.without_restoring():
            found = _in_batches(run, images)
    except Exception:  # noqa: BLE001 (a reader of all tokens may raise anything)
        return False
    return found.shape == expected.shape and np.allclose(
        found, expected, rtol=0, atol=_SAME * float(np.abs(expected).max())
    )


def _write(
    write: Callable[[np.ndarray, Path], None], images: np.ndarray, path: Path, form: str
) -> list[Path]:
    """Write a file in a folder of its own, and return all files there, the main one first."""
    graph = path.with_suffix(".onnx")
    write(images, graph)
    if form == "openvino":
        import openvino

        openvino.save_model(openvino.convert_model(str(graph)), str(path), compress_to_fp16=False)
        for one in list(path.parent.glob(f"{graph.name}*")):
            one.unlink()
    rest = [one for one in path.parent.iterdir() if one.is_file() and one != path]
    return [path, *sorted(rest)]


def _in_batches(run: Run, images: np.ndarray) -> np.ndarray:
    """Return the outputs for all images: the first by itself, the others in batches of the second size."""
    first, size = _BATCHES
    starts = [0, *range(first, len(images), size)]
    ends = [first, *starts[2:], len(images)]
    return np.concatenate([run(images[start:end]) for start, end in zip(starts, ends, strict=True)])


def _compare(expected: np.ndarray, found: np.ndarray, path: Path) -> tuple[float, int]:
    """Return the largest difference of images that merge alike, and how many do not; raise if too many."""
    if expected.shape != found.shape:
        raise TomeError(
            f"the file {path.name} returns shape {found.shape} and the model {expected.shape}; the file was "
            "removed"
        )
    scale = float(np.abs(expected).max()) or 1.0
    off = np.abs(expected - found).reshape(len(expected), -1).max(axis=1) / scale
    close = off <= _CLOSE  # False for NaN
    flips = int((~close).sum())
    if flips * _FLIPS > len(off) or not all(_cosine(expected, found)[~close] > _ALIKE):
        raise TomeError(
            f"the file {path.name} does not compute what the model computes: the outputs of {flips} of "
            f"{len(off)} images differ by more than {_CLOSE:g} of the largest output, at most by "
            f"{off.max():.2g}. The file was removed. Try r=0, and another version of the runtime"
        )
    return float(off[close].max()), flips


def _cosine(a: np.ndarray, b: np.ndarray) -> Any:
    """Return (n,) cosines between two outputs of each image."""
    a, b = (one.reshape(len(one), -1).astype(np.float64) for one in (a, b))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)


def _time(plain: Path, merged: Path, images: np.ndarray, threads: int, rounds: int) -> Speed:
    runs = {"unmerged": run_file(plain, threads), "merged": run_file(merged, threads)}
    timed = list(
        interleave({name: lambda run=run: run(images) for name, run in runs.items()}, rounds)  # type: ignore[misc]
    )
    speed = {name: len(images) / statistics.median(one[name] for one in timed) for name in runs}
    return Speed(threads, len(images), **speed, speedup=median_ratio(timed, "unmerged", "merged"))
