"""Files of ``tomecore export`` on a CPU: speed next to the file without merging, and agreement.

    python benchmarks/onnx_files.py --json FILE --threads 1 2 --runtimes onnx openvino    # all
    python benchmarks/onnx_files.py --json FILE --only dinov2-small --threads 1 --seconds 30
    python benchmarks/onnx_files.py --json FILE --only dinov2-small --cifar cifar10.npz --images 500
    python benchmarks/onnx_files.py --json FILE --only dinov2-small --cifar cifar10.npz --int8
    python benchmarks/onnx_files.py --show FILE

An existing file is resumed: cells that it has are not measured again. A cell is a model, a runtime, a number
of threads and a batch size; the files are timed in turn. "unmerged" is tomecore's own file at r = 0, and
"torch.onnx.export" what torch writes of the unpatched model, which has more nodes. Weights are random, which
does not change the speed, except for DINOv2 ViT-S/14 (real_model.py). For that, ``--cifar`` also measures how
many neighbours an index of merged embeddings finds for queries by unmerged ones, and ``--int8`` what ONNX
Runtime's dynamic quantisation of both files gives. Exported files are kept in ``--files``, so that an
interrupted run does not export them again. With ``--threads 2`` the whole machine must be idle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import real_model
import torch
from real_images import cifar_images

from tomecore import benchmark, exporting, schedule
from tomecore.adapters import torch as tome
from tomecore.loading import Loaded, load
from tomecore.loading.images import Preprocess

Cell = dict[str, Any]


def dinov2_small() -> Loaded:
    """Return DINOv2 ViT-S/14 with its trained weights."""
    side = (real_model.SIDE, real_model.SIDE)
    return Loaded("dinov2-small", real_model.load_model().backbone, Preprocess(side, crop=1.0))


def named(name: str) -> Callable[[], Loaded]:
    return lambda: load(name)


MODELS: dict[str, Callable[[], Loaded]] = {
    "dinov2-small": dinov2_small,
    "clip-b32": named("open_clip:ViT-B-32"),
    "clip-b16": named("open_clip:ViT-B-16"),
    "clip-l14-336": named("open_clip:ViT-L-14-336"),
    "siglip2-b16-256": named("timm:vit_base_patch16_siglip_256"),
    "siglip2-b16-384": named("timm:vit_base_patch16_siglip_384"),
}
#: the arithmetic limit of every merged file
SPEEDUP = 2.0
NEIGHBOURS = (1, 10)


def files_of(name: str, folder: Path) -> tuple[dict[str, Path], Cell]:
    """Export a model in each way, unless that is done; return the files and the report of merging."""
    folder.mkdir(parents=True, exist_ok=True)
    by_torch, plain, merged, report = (
        folder / f"{name}-{one}"
        for one in ("torch.onnx", "plain.onnx", "merged.onnx", "report.json")
    )
    if not report.exists():
        loaded = MODELS[name]()
        export_by_torch(loaded, by_torch)
        tome.apply_patch(loaded.model)
        r = schedule.for_speedup(loaded.model, SPEEDUP)
        exporting.export(loaded, plain, r=0, rounds=0, force=True)
        found = exporting.export(loaded, merged, r=r, rounds=0, force=True).as_dict()
        keep = ("limit", "size", "difference", "near_ties", "checked", "tokens", "tokens_left")
        report.write_text(
            json.dumps({"shape": loaded.input_shape, **{key: found[key] for key in keep}})
        )
    files = {"torch.onnx.export": by_torch, "unmerged": plain, "merged": merged}
    return files, json.loads(report.read_text())


def export_by_torch(loaded: Loaded, path: Path) -> None:
    """Export an unpatched model as torch does it, for any batch size."""
    model = loaded.whole or loaded.model
    method = "encode_image" if hasattr(model, "encode_image") else "forward"

    class Images(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> Any:
            found = getattr(self.model, method)(images)
            return getattr(found, "pooler_output", found)

    batch = {0: torch.export.Dim("batch")}
    images = torch.zeros(2, *loaded.input_shape)
    with torch.no_grad():
        program = torch.onnx.export(
            Images().eval(), (images,), dynamo=True, dynamic_shapes=(batch,), verbose=False
        )
    assert program is not None
    program.save(path)


def measure(cell: Cell, folder: Path, seconds: float) -> Cell:
    """Time the files in turn for about ``seconds``, and at least 5 rounds."""
    files, report = files_of(cell["model"], folder)
    shape = (cell["batch"], *report.pop("shape"))
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    where = (cell["threads"], cell["runtime"])
    runs = {name: exporting.run_file(path, *where) for name, path in files.items()}
    calls = {name: (lambda run=run: run(images)) for name, run in runs.items()}
    calls["unmerged"]()
    start = time.perf_counter()
    calls["unmerged"]()
    rounds = max(5, round(seconds / (2.5 * (time.perf_counter() - start))))
    timed = list(benchmark.interleave(calls, rounds))
    speedup = benchmark.median_ratio(timed, "unmerged", "merged")
    return {
        **cell,
        **report,
        "rounds": rounds,
        "images_per_second": {
            name: cell["batch"] / statistics.median(one[name] for one in timed) for name in calls
        },
        "speedup": speedup,
        "speedup_quartiles": benchmark.quartiles(timed, "unmerged", "merged"),
        "limit_share": speedup / report["limit"],
        "speedup_from_torch": benchmark.median_ratio(timed, "torch.onnx.export", "merged"),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of the runtimes."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("onnx", "onnxruntime", "openvino"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def recall(folder: Path, file: Path, count: int) -> Cell:
    """Return how well an index of merged embeddings of CIFAR-10 serves queries by unmerged and merged ones.

    ``recall@k``: the share of the k nearest images by unmerged embeddings that are found among the k nearest,
    without the image itself. ``class@k``: the share of the k nearest that have the query's class. ``itself``:
    how often the nearest image is the query's own.
    """
    files, _ = files_of("dinov2-small", folder)
    cifar = cifar_images(file, 10, count)
    images, labels = np.asarray(cifar.test, dtype=np.float32), np.asarray(cifar.test_labels)
    found = []
    for path in (files["unmerged"], files["merged"]):
        run = exporting.run_file(path, 1)
        parts = [run(images[at : at + 8]) for at in range(0, len(images), 8)]
        one = np.concatenate(parts).astype(np.float64)
        found.append(one / np.linalg.norm(one, axis=1, keepdims=True))
    unmerged, ours = found
    cell: Cell = {
        "images": len(images),
        "cosine": float((unmerged * ours).sum(1).mean()),
        "itself": float(((unmerged @ ours.T).argmax(1) == np.arange(len(images))).mean()),
    }
    right = nearest(unmerged, unmerged, max(NEIGHBOURS))
    pairs = {
        "unmerged in unmerged": (unmerged, unmerged),
        "unmerged in merged": (unmerged, ours),
        "merged in merged": (ours, ours),
    }
    for name, (queries, index) in pairs.items():
        near = nearest(queries, index, max(NEIGHBOURS))
        cell[name] = {}
        for k in NEIGHBOURS:
            same = [len({*a[:k]} & {*b[:k]}) / k for a, b in zip(right, near, strict=True)]
            cell[name][f"recall@{k}"] = statistics.fmean(same)
            cell[name][f"class@{k}"] = float((labels[near[:, :k]] == labels[:, None]).mean())
    return cell


def nearest(queries: np.ndarray, index: np.ndarray, k: int) -> np.ndarray:
    """Return the k most similar images of the index for each query, without the query's own image."""
    similar = queries @ index.T
    np.fill_diagonal(similar, -np.inf)
    return np.argsort(-similar, axis=1, kind="stable")[:, :k]


def quantised(folder: Path, file: Path, threads: list[int], batches: list[int], count: int) -> Cell:
    """Return the speed and the cosine of both files of DINOv2 ViT-S/14, in int8 and in float32."""
    from onnxruntime.quantization import quantize_dynamic

    files, _ = files_of("dinov2-small", folder)
    paths = {name: files[name] for name in ("unmerged", "merged")}
    for name, path in list(paths.items()):
        paths[f"{name} int8"] = small = path.with_name(f"{path.stem}-int8.onnx")
        if not small.exists():
            quantize_dynamic(path, small)
    images = np.asarray(cifar_images(file, 10, count).test, dtype=np.float32)
    units = {}
    for name, path in paths.items():
        run = exporting.run_file(path, 1)
        one = np.concatenate([run(images[at : at + 8]) for at in range(0, len(images), 8)])
        units[name] = one / np.linalg.norm(one, axis=1, keepdims=True)
    cells = []
    for number, batch in product(threads, batches):
        runs = {name: exporting.run_file(path, number) for name, path in paths.items()}
        given = images[:batch]
        calls = {name: (lambda run=run, x=given: run(x)) for name, run in runs.items()}
        timed = list(benchmark.interleave(calls, 31 if batch == 1 else 9))
        faster = {name: benchmark.median_ratio(timed, "unmerged", name) for name in paths}
        cells.append({"threads": number, "batch": batch, "faster": faster})
    cosines = {name: float((one * units["unmerged"]).sum(1).mean()) for name, one in units.items()}
    size = {name: path.stat().st_size for name, path in paths.items()}
    return {"images": len(images), "cosine": cosines, "bytes": size, "cells": cells}


def line(cell: Cell) -> str:
    speed = cell["images_per_second"]
    by_torch = cell.get("speedup_from_torch")  # not in cells of before
    next_to_torch = "       -" if by_torch is None else f"{by_torch:7.2f}x"
    return (
        f"{cell['model']:16s} {cell['runtime']:9s} {cell['threads']:7d} {cell['batch']:5d}  "
        f"{speed['unmerged']:8.2f} {speed['merged']:8.2f}  {cell['speedup']:5.2f}x {cell['limit']:5.2f}x "
        f"{cell['limit_share']:6.1%}  {next_to_torch}  {cell['difference']:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the numbers, or resume an existing file")
    parser.add_argument("--show", type=Path, help="print this file and measure nothing")
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--runtimes", nargs="*", choices=("onnx", "openvino"), default=["onnx"])
    parser.add_argument("--threads", nargs="*", type=int, default=[1])
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--seconds", type=float, default=30, help="for each cell")
    parser.add_argument("--files", type=Path, default=Path("build/onnx"), help="exported files")
    parser.add_argument("--cifar", type=Path, help="an npz file: x_probe, y_probe, x_test, y_test")
    parser.add_argument("--int8", action="store_true", help="quantise the files too; needs --cifar")
    parser.add_argument("--images", type=int, default=500, help="of --cifar")
    arguments = parser.parse_args()
    path = arguments.show or arguments.json
    content = json.loads(path.read_text()) if path and path.exists() else {"cells": []}
    print(
        f"{'model':16s} {'runtime':9s} threads batch  unmerged   merged   speed  limit  share   torch's  off"
    )
    for one in content["cells"]:
        print(line(one))

    def keep() -> None:
        content["machine"] = benchmark.machine()
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(content, indent=1) + "\n")

    keys = ("model", "runtime", "threads", "batch")
    done = {tuple(one[key] for key in keys) for one in content["cells"]}
    cells = product(arguments.only, arguments.runtimes, arguments.threads, arguments.batches)
    for values in () if arguments.show else cells:
        if values not in done:
            found = measure(
                dict(zip(keys, values, strict=True)), arguments.files, arguments.seconds
            )
            content["cells"].append(found)
            print(line(found), flush=True)
            keep()
    if arguments.cifar and "recall" not in content:
        content["recall"] = recall(arguments.files, arguments.cifar, arguments.images)
        keep()
    if arguments.cifar and arguments.int8 and "int8" not in content:
        how = (arguments.threads, arguments.batches, arguments.images)
        content["int8"] = quantised(arguments.files, arguments.cifar, *how)
        keep()
    for one in content.get("int8", {}).get("cells", []):
        print("int8:", one)
    if "recall" in content:
        print("an index of merged embeddings:", content["recall"])


if __name__ == "__main__":
    main()
