"""Run the items of a GPU script and write their results; shared by ``gpu.py`` and ``paddle_gpu.py``.

Each result is a line of JSON, and is on disk before the next item begins: "done", "skipped" with the reason,
or "FAILED" with the end of the traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Found", "Item", "attempt", "commit", "output", "parser_of", "run_items"]

Found = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One check or measurement.

    Args:
        name: its name in the results.
        seconds: the time that it may take; it is skipped if less is left.
        call: returns the result, and raises if that is wrong.
        needs_gpu: whether it is meaningful only on a GPU.
    """

    name: str
    seconds: int
    call: Callable[[], Found]
    needs_gpu: bool = False


def parser_of(description: str, file: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all GPU scripts have; results are in ``file``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help=f"folder of {file}")
    parser.add_argument("--seconds", type=float, default=480, help="what needs more is skipped")
    parser.add_argument("--tiny", action="store_true", help="so small that speed says nothing")
    parser.add_argument("--skip", type=Path, help="results that are kept, not measured again")
    parser.add_argument("--only", nargs="+", default=[], help="parts of names: only these, again")
    return parser


def output(*command: str) -> str | None:
    """Return what a command prints, or None if it does not exist or fails."""
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def commit() -> dict[str, str | None]:
    """Return the driver of the GPU and the commit of this repository, for the line of the machine."""
    driver = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    where = str(Path(__file__).parent)
    return {"driver": driver, "commit": output("git", "-C", where, "rev-parse", "HEAD")}


def attempt(
    item: Item, why_skipped: Callable[[BaseException], str | None] = lambda error: None
) -> Found:
    """Run an item and return its line of the results; ``why_skipped`` excuses an error."""
    start = time.monotonic()
    try:
        line = {"name": item.name, "status": "done", **item.call()}
    except Exception as error:
        last, why = traceback.format_exc().splitlines()[-6:], why_skipped(error)
        line = {"name": item.name, "status": "FAILED", "traceback": last}
        if why is not None:
            line = {"name": item.name, "status": "skipped", "why": why}
    return line | {"seconds": round(time.monotonic() - start, 1)}


def run_items(
    items: Iterable[Item],
    given: argparse.Namespace,
    file: str,
    *,
    gpu: bool,
    run: Callable[[Item], Found],
    shown: Callable[[Found], str],
    after: Callable[[], Any] = lambda: None,
) -> int:
    """Run everything that fits, the first item always; return the exit status, 1 if anything failed.

    A failure in ``given.skip`` stays one until it has run again, with ``given.only``.

    Args:
        items: in order.
        given: the options of :func:`parser_of`.
        file: the name of the results, in the folder ``given.out``.
        gpu: whether there is one.
        run: runs an item and returns its line.
        shown: returns a line in readable form.
        after: called after each item; raises if the device is lost.
    """
    deadline = time.monotonic() + given.seconds
    lines = _read(given.skip) if given.skip else {}
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / file
    kept = path.with_suffix(".kept")
    kept.write_text("".join(json.dumps(line) + "\n" for line in lines.values()))
    kept.replace(path)
    with path.open("a") as results:
        for number, item in enumerate(items):
            named = any(part in item.name for part in given.only)
            if number and not (named if given.only else item.name not in lines):
                continue
            left = deadline - time.monotonic() if number else float("inf")
            why = _reason_to_skip(item, gpu, left)
            line = {"name": item.name, "status": "skipped", "why": why} if why else run(item)
            lines[item.name] = line
            results.write(json.dumps(line, default=str) + "\n")
            results.flush()
            os.fsync(results.fileno())
            print(shown(line), flush=True)
            after()
    print("\nsummary:", *map(shown, lines.values()), sep="\n")
    return int(any(line["status"] == "FAILED" for line in lines.values()))


def _read(path: Path) -> dict[str, Found]:
    """Return the results of an earlier run by name, without skipped items and half-written lines."""
    whole = [text for text in path.read_text().splitlines(keepends=True) if text.endswith("}\n")]
    return {line["name"]: line for line in map(json.loads, whole) if line["status"] != "skipped"}


def _reason_to_skip(item: Item, gpu: bool, left: float) -> str | None:
    """Return why an item does not run; None if it does."""
    if item.needs_gpu and not gpu:
        return "needs a GPU"
    if left < item.seconds:
        return f"needs {item.seconds} s, and {max(0, left):.0f} are left"
    return None
