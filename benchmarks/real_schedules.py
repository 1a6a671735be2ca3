"""Which schedule loses least on a real pretrained ViT, DINOv2 ViT-S/14: the rules, and searches.

    python benchmarks/real_schedules.py rules --photos FOLDER --json real-schedules.json
    python benchmarks/real_schedules.py search --photos FOLDER --json real-schedules.json
    python benchmarks/real_schedules.py measured --photos FOLDER --threads 2 --json real-measured.json
    python benchmarks/real_schedules.py show --json real-schedules.json --plot schedules.png

``rules`` measures every rule of ``for_speedup`` on all images. ``search`` searches on every other image, for
three read-outs (class token, patches, saliency map), and measures what it finds on the others. ``measured``
is about time at batch 1, and needs an idle machine: it searches with the measured cost on every other image,
and times the rule, the candidate of the search, and all shapes that merge in few layers, in turn, on this
model (ViT-S) and on a ViT-Ti with random weights; their losses are those of ViT-S on the other images.

Each cell is written to the JSON file when it is finished. An existing file is resumed; searches have files of
their own next to it, which are resumed too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from real_results import load, write

Cell = dict[str, Any]
SCHEMA = "tomecore real schedules 1"
SPEEDUPS = {
    "rules": (1.25, 1.5, 2.0, 2.5, 3.0, 4.0),
    "search": (2.0, 3.0),
    "measured": (1.5, 2.0, 3.0),
}
#: read-out -> the number of an image that it is judged by
READ = {"class": "class", "patch": "patch", "saliency": "saliency"}


class Results:
    """Cells by their keys, and the file that has them."""

    def __init__(self, path: Path, source: str) -> None:
        from tomecore.benchmark import machine

        self.path = path
        self.content: dict[str, Any] = {
            "schema": SCHEMA,
            "source": source,
            "machine": machine(),
            "cells": {},
        }
        if path.exists():
            self.content = load(path, SCHEMA)
            if self.content["source"] != source:
                raise SystemExit(
                    f"--json {path} was measured on other images ({self.content['source']}; now {source}): "
                    "pass another file, or the same images"
                )

    def once(self, key: str, measure: Callable[[], Cell]) -> None:
        """Measure a cell unless the file has it; write the file."""
        if key in self.content["cells"]:
            return
        start = time.process_time()
        self.content["cells"][key] = measure()
        print(
            f"{key}: {time.process_time() - start:.0f} s of CPU time", file=sys.stderr, flush=True
        )
        save(self.path, self.content)


def save(path: Path, content: dict[str, Any]) -> None:
    """Write the content with one line for each cell; an interruption leaves the file as it was."""
    head = json.dumps({**content, "cells": {}}, indent=1).removesuffix("{}\n}")
    cells = content["cells"].items()
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in cells)
    write(path, f"{head}{{\n{lines}\n}}}}\n")


class Reader:
    """Reads class token, patches and saliency map of the merging model, each batch and r once."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._known: dict[Any, Any] = {}

    def tokens(self, images: Any) -> Any:
        """Return the tokens (B, 257, 384) after the last norm."""
        key = (str(self.model.r), len(images), float(images.double().sum()))
        if key not in self._known:
            self._known[key] = self.model.backbone(pixel_values=images).last_hidden_state
        return self._known[key]

    def of(self, name: str) -> Callable[[Any, Any], Any]:
        """Return the function that a search is passed as ``read``."""

        def read(model: Any, images: Any) -> Any:
            tokens = self.tokens(images)
            if name == "saliency":
                return model.decode(tokens)
            return tokens[:, 0] if name == "class" else tokens[:, 1:]

        return read


class OnPhotographs:
    """A patched model, and what schedules lose on images."""

    def __init__(self, model: Any, pixels: Any, batch: int) -> None:
        from real_measure import read

        self.model, self.pixels, self.batch = model, pixels, batch
        self._read = read
        self._expected: dict[int, Any] = {}

    def losses(self, r: Any, first: int, step: int) -> Cell:
        """Return class and patch cosine and saliency error of every ``step``-th image from ``first`` on."""
        from real_measure import losses

        pixels = self.pixels[first::step]
        if first not in self._expected:
            self.model.r = 0
            self._expected[first] = self._read(self.model, pixels, self.batch)
        self.model.r = r
        found = losses(self._read(self.model, pixels, self.batch), self._expected[first])
        arithmetic = self.model.tome.arithmetic
        tokens = self.model.tome.num_tokens
        return {
            "r": self.model.tome.schedule,
            "limit": round(arithmetic.limit(tokens, self.model.tome.schedule), 4),
            **found,
        }


def measure_rules(on: OnPhotographs, results: Results, speedups: list[float]) -> None:
    """Measure each rule at each speed-up, on all images."""
    from tomecore import schedule
    from tomecore.schedule.rules import RULES

    for speedup in speedups:
        for rule in RULES:
            r = schedule.for_speedup(on.model, speedup, rule)
            results.once(f"rules {speedup:g} {rule}", lambda r=r: on.losses(r, 0, 1))


def measure_search(on: OnPhotographs, results: Results, speedups: list[float]) -> None:
    """Search on every other image, and measure the result and the rules on the others."""
    from tomecore import schedule

    reader = Reader(on.model)
    images = on.pixels[::2]
    for speedup in speedups:
        for name in READ:

            def search(name: str = name, speedup: float = speedup) -> Cell:
                found = schedule.tune(
                    on.model,
                    images,
                    speedup,
                    read=reader.of(name),
                    resume=results.path.with_name(f"{results.path.stem}-{name}.partial"),
                )
                unseen = on.losses(list(found.schedule.r), 1, 2)
                return {"found": found.as_dict(), "unseen": unseen}

            results.once(f"search {speedup:g} {name}", search)
        for rule in ("ratio", "constant"):
            r = schedule.for_speedup(on.model, speedup, rule)
            results.once(f"unseen {speedup:g} {rule}", lambda r=r: on.losses(r, 1, 2))


def measure_time(on: OnPhotographs, results: Results, speedups: list[float], threads: int) -> None:
    """Search with the measured cost at batch 1; time the result, the rule and few merges, on two models."""
    import timm
    import torch

    import tomecore.adapters.torch as tome
    from tomecore import schedule
    from tomecore.benchmark import interleave, median_ratio, quartiles
    from tomecore.schedule.search import Space

    tiny = timm.create_model("vit_tiny_patch16_224", patch_size=14, num_classes=0)
    models = {"ViT-S": on.model, "ViT-Ti": tome.apply_patch(tiny.eval())}
    one = on.pixels[:1]

    def run(model: Any, r: list[int]) -> Any:
        model.r = r
        with torch.inference_mode():
            return model(one)

    def cell(speedup: float) -> Cell:
        found = schedule.tune(
            on.model,
            on.pixels[::2],
            speedup,
            read=lambda model, images: model.backbone(pixel_values=images).last_hidden_state[:, 1:],
            cost="measured",
            batch=1,
            resume=results.path.with_name(f"{results.path.stem}-{threads}.partial"),
        )
        space = Space(on.model.tome.arithmetic, found.schedule.num_tokens, speedup)
        listed = [found.rule, *([found.candidate] if found.candidate else [])]
        listed += [r for shape in space.few_merges() if (r := space.of_shape(shape)) is not None]
        each = {str(r): r for r in listed}
        timed: dict[str, dict[str, Any]] = {r: {} for r in each}
        for name, model in models.items():
            calls = {key: (lambda model=model, r=r: run(model, r)) for key, r in each.items()}
            rounds = list(interleave(calls, 31))
            for key in each:
                timed[key][name] = {
                    "faster": median_ratio(rounds, str(found.rule), key),
                    "quartiles": quartiles(rounds, str(found.rule), key),
                    "milliseconds": 1e3 * statistics.median(one[key] for one in rounds),
                }
        rows = [{**on.losses(r, 1, 2), "time": timed[key]} for key, r in each.items()]
        return {"found": found.as_dict(), "threads": threads, "rows": rows}

    for speedup in speedups:
        results.once(f"measured {speedup:g} {threads}", lambda speedup=speedup: cell(speedup))


def paired(values: list[float], base: list[float]) -> str:
    """Return the mean of paired differences, and its standard error."""
    pairs = [one - other for one, other in zip(values, base, strict=True)]
    return f"{statistics.fmean(pairs):+.4f} ± {statistics.stdev(pairs) / len(pairs) ** 0.5:.4f}"


def show(cells: dict[str, Cell]) -> None:
    """Print Markdown tables of all cells."""
    for key, cell in cells.items():
        kind, speedup, *rest = key.split()
        if kind == "rules":
            base = cells.get(f"rules {speedup} ratio", cell)
            means = [f"{statistics.fmean(cell[name]):.4f}" for name in READ]
            pairs = [paired(cell[name], base[name]) if base is not cell else "" for name in READ]
            both = [text for pair in zip(means, pairs, strict=True) for text in pair]
            print(f"| {speedup}x | {rest[0]} | {cell['limit']:.3f}x | {' | '.join(both)} |")
        elif kind == "search":
            base, unseen = cells[f"unseen {speedup} ratio"], cell["unseen"]
            found = cell["found"]["search"]
            pairs = [paired(unseen[name], base[name]) for name in READ]
            print(
                f"| {speedup}x | {rest[0]} | {'yes' if found['better'] else 'no'} | {' | '.join(pairs)} | "
                f"{found['passes']} | {found['says']}"
            )
        elif kind == "measured":
            print(f"| {speedup}x, {rest[0]} threads: {cell['found']['search']['says']}")
            for row in cell["rows"]:
                times = [
                    f"{time['faster']:.3f} ({time['quartiles'][0]:.3f}-{time['quartiles'][1]:.3f})"
                    for time in row["time"].values()
                ]
                difference = paired(row["patch"], cell["rows"][0]["patch"])
                merges = sum(map(bool, row["r"]))
                print(
                    f"| {merges} | {row['limit']:.3f} | {' | '.join(times)} | {difference} | {row['r']}"
                )


def draw(cells: dict[str, Cell], path: Path) -> None:
    """Draw what each rule loses against its arithmetic limit: saliency error, and 1 - cosine of the rest."""
    import matplotlib.pyplot as plt

    heads = {
        "class": "1 - cosine of the class token",
        "patch": "1 - cosine of the patches",
        "saliency": "error of the saliency map",
    }
    figure, axes = plt.subplots(1, len(heads), figsize=(10, 3.2))
    rows = [(key.split()[2], cell) for key, cell in cells.items() if key.startswith("rules ")]
    for axis, (name, head) in zip(axes, heads.items(), strict=True):
        for rule in dict.fromkeys(rule for rule, _ in rows):
            mine = sorted((one["limit"], one[name]) for other, one in rows if other == rule)
            lost = [statistics.fmean(values) for _, values in mine]
            lost = lost if name == "saliency" else [1 - one for one in lost]
            axis.plot([limit for limit, _ in mine], lost, "o-", label=rule)
        axis.set_yscale("log")
        axis.set_xlabel("arithmetic limit")
        axis.set_title(head, fontsize=10)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=[*SPEEDUPS, "show"])
    parser.add_argument("--photos", type=Path, help="a folder of images, in place of the packages'")
    parser.add_argument("--speedups", nargs="+", type=float)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path, help="with show: draw the rules")
    args = parser.parse_args(arguments)
    if args.kind == "show":
        cells = load(args.json, SCHEMA)["cells"]
        show(cells)
        if args.plot is not None:
            draw(cells, args.plot)
        return
    os.environ["OMP_NUM_THREADS"] = str(
        args.threads
    )  # read when torch is imported, which comes next
    import real_images
    import torch
    from real_model import load_model

    import tomecore.adapters.torch as tome

    torch.set_num_threads(args.threads)
    images = real_images.folder_images(args.photos) if args.photos else real_images.package_images()
    on = OnPhotographs(tome.apply_patch(load_model()), images.pixels, args.batch)
    results = Results(args.json, images.source)
    speedups = args.speedups or list(SPEEDUPS[args.kind])
    if args.kind == "rules":
        measure_rules(on, results, speedups)
    elif args.kind == "search":
        measure_search(on, results, speedups)
    else:
        measure_time(on, results, speedups, args.threads)
    show(results.content["cells"])


if __name__ == "__main__":
    main()
