"""``tomecore plan``: what each layer of a model would merge, and the speedup that allows."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tomecore import schedule
from tomecore.cli._files import check_file, write_numbers
from tomecore.cli._output import console, plain_table, say
from tomecore.cli._progress import Step, steps
from tomecore.cli._shared import (
    Json,
    Matching,
    ModelName,
    Resolution,
    app,
    label_of,
    read_r,
    warn_of_other_models,
)
from tomecore.errors import UnsupportedModelError
from tomecore.schedule import gpu
from tomecore.schedule.arithmetic import Arithmetic, PlannedLayer, in_words, plan_table

if TYPE_CHECKING:
    from tomecore.loading import Loaded


@app.command()
def plan(
    model: ModelName,
    r: Annotated[
        str | None,
        typer.Option(
            "--r",
            help='Tokens merged per layer: 16, "(16, -1)" for mean and inflect, "[0, 0, 30]", or tuned.json.',
        ),
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(
            "--ratio", help="Instead: the share of its tokens each layer keeps, 0.5 to 1."
        ),
    ] = None,
    last: Annotated[
        int | None, typer.Option("--last", help="Instead: tokens after the last layer.")
    ] = None,
    speedup: Annotated[
        float | None,
        typer.Option("--speedup", help="Instead: the arithmetic limit to reach, such as 2."),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            "--rule",
            help="With --last or --speedup: how merges are spread, by ratio, constant or early.",
            show_default="ratio",
        ),
    ] = None,
    matching: Matching = "tome",
    resolution: Resolution = None,
    json_file: Json = None,
) -> None:
    """Show what each layer of a model would merge, where r is more than it can merge, and the limit.

    Give exactly one of --r, --ratio, --last and --speedup. Nothing is downloaded or timed, and weights do not
    matter: only the part of the model before its first block runs, to count the tokens of an image.

    Every matching merges the same number of tokens. Choose one with --matching to check that this model has
    what it needs. Layers count from 0.

    Example: tomecore plan --model timm:vit_base_patch16_224 --r 13
    """
    check_file(json_file, "--json")
    given = {"--r": r, "--ratio": ratio, "--last": last, "--speedup": speedup}
    found = [option for option, value in given.items() if value is not None]
    if len(found) != 1:
        raise typer.BadParameter(
            f"give exactly one of {', '.join(given)}; got {', '.join(found) or 'none'}"
        )
    if rule is not None and last is None and speedup is None:
        raise typer.BadParameter("needs --last or --speedup", param_hint="--rule")
    wish: schedule.R = 0 if r is None else read_r(r)

    with steps("importing the libraries") as step:
        loaded = _load(model, matching, resolution, step)
        from tomecore.loading import tokens_of

        tokens = tokens_of(loaded)
    how = f", rule {rule or 'ratio'}"
    if ratio is not None:
        wish, label = schedule.Ratio(ratio), f"each layer keeps {ratio:g} of its tokens"
    elif last is not None:
        wish = schedule.for_tokens(loaded.model, last=last, rule=rule)
        label = f"{last} tokens at the end{how}"
    elif speedup is not None:
        wish = schedule.for_speedup(loaded.model, speedup, rule=rule)
        label = f"a limit of {speedup:g}x{how}"
    else:
        loaded.model.r = wish  # raises if it was found for another model
        warn_of_other_models([wish], model)
        label = f"r = {label_of(str(r), wish)}"
    arithmetic = loaded.model.tome.arithmetic
    rows = plan_table(arithmetic, tokens, wish)
    limit = arithmetic.limit(tokens, wish)
    operations = arithmetic.multiply_adds(tokens, wish)
    console.print(_table(rows, f"{model}, {tokens} tokens, {label}"))
    say(
        f"Limit by arithmetic: [green]{limit:.2f}x[/green] ({in_words(operations)} multiply-adds instead of "
        f"{in_words(operations * limit)})"
    )
    clamped = [row for row in rows if row.clamped]
    if clamped:
        never = ", prefix tokens not counted" if arithmetic.protected else ""
        say(
            f"[yellow]*[/yellow] {len(clamped)} of {len(rows)} layers cannot merge as many tokens as r says: "
            f"a layer merges at most half of its tokens{never}."
        )
    batches = _break_even(arithmetic, tokens, wish) if loaded.framework == "torch" else {}
    if any(row.merged for row in rows) and batches:
        say(_on_a_gpu(batches))
    numbers = {
        "model": model,
        "matching": matching,
        "r": schedule.as_data(wish),
        "num_tokens": tokens,
        "protected": arithmetic.protected,
        "limit": limit,
        "multiply_adds": operations,
        "gpu": batches,
        "layers": [dataclasses.asdict(row) for row in rows],
    }
    write_numbers(json_file, numbers)


def _load(model: str, matching: str, resolution: int | None, step: Step) -> Loaded:
    """Return a patched model; its weights hold values only if they are needed to try its blocks."""
    from tomecore.loading import adapter_of, load

    step(f"building {model}")
    loaded = load(model, resolution=resolution, shapes_only=True)
    adapter = adapter_of(loaded.framework)
    try:
        adapter.apply_patch(loaded.model, matching=matching)
        fallback = adapter.HOST.fallback
        tried = fallback is not None and loaded.model.tome.family == fallback.family
    except UnsupportedModelError:
        if loaded.initialised:
            raise
        tried = True
    if tried and not loaded.initialised:
        step(f"building {model} with its weights, to try its blocks")
        loaded = load(model, resolution=resolution)
        adapter.apply_patch(loaded.model, matching=matching)
    return loaded


def _break_even(
    arithmetic: Arithmetic, tokens: int, wish: schedule.R
) -> dict[str, tuple[int, int] | None]:
    """Return the break-even batch on a GPU: of the library's calls, the fused kernels, and a CUDA graph."""
    forms = {
        "calls": (gpu.CALLS, gpu.H200),
        "fused": (gpu.FUSED, gpu.H200),
        "graph": (gpu.FUSED, gpu.GRAPH),
    }
    return {
        name: gpu.break_even_batch(arithmetic, tokens, wish, merge=merge, gpu=machine)
        for name, (merge, machine) in forms.items()
    }


def _on_a_gpu(batches: dict[str, tuple[int, int] | None]) -> str:
    """Return the sentence about a GPU."""
    start = "On a GPU (computed for an H200 in half precision, not measured): "
    if batches["fused"] is None:
        return (
            start + "no gain at any batch size; merging moves more memory than it saves operations."
        )
    text = start + f"faster above a batch size between {_between(batches['fused'])}"
    if batches["graph"] is not None:
        text += f" (as a CUDA graph above {_rounded(batches['graph'][0])})"
    if batches["calls"] is None:
        return text + ". Without Triton there is no gain at any batch size."
    return text + f"; without Triton, above one between {_between(batches['calls'])}."


def _between(batches: tuple[int, int]) -> str:
    low, high = batches
    return f"{_rounded(low)} and {_rounded(high)}"


def _rounded(batch: int) -> str:
    """Return an estimate of a batch size with two significant digits, rounded up."""
    unit = 10 ** max(0, int(math.log10(batch)) - 1)
    return f"{math.ceil(batch / unit) * unit:,}"


def _table(rows: list[PlannedLayer], title: str) -> Table:
    table = plain_table(
        title=escape(title), caption="multiply-adds: of the layer, over those without merging"
    )
    for heading in ("layer", "r", "merged", "tokens\nleft", "multiply-\nadds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        mark = "[yellow]*[/yellow]" if row.clamped else " "
        table.add_row(
            str(row.layer),
            str(row.asked),
            f"{row.merged}{mark}",
            str(row.tokens),
            f"{row.share:.0%}",
        )
    return table
