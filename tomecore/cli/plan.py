"""``tomecore plan``: what each layer of a model would merge, and the speedup that allows."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from tomecore import schedule
from tomecore.cli._shared import (
    Json,
    ModelName,
    Resolution,
    app,
    check_file,
    console,
    plain_table,
    read_r,
    write_numbers,
)
from tomecore.schedule.arithmetic import PlannedLayer, plan_table

if TYPE_CHECKING:
    from tomecore.loading import Loaded


@app.command()
def plan(
    model: ModelName,
    r: Annotated[
        str | None,
        typer.Option("--r", help='16, "(16, -1)" for mean and inflect, or "[0, 0, 30]".'),
    ] = None,
    ratio: Annotated[
        float | None, typer.Option("--ratio", help="Instead: the share each layer keeps, 0.5 to 1.")
    ] = None,
    last: Annotated[
        int | None, typer.Option("--last", help="Instead: tokens after the last layer.")
    ] = None,
    speedup: Annotated[
        float | None, typer.Option("--speedup", help="Instead: the arithmetic limit to reach.")
    ] = None,
    resolution: Resolution = None,
    json_file: Json = None,
) -> None:
    """Show what each layer of a model would merge, where r is more than it can merge, and the limit.

    The model runs on one image of zeros, to count its tokens; weights do not matter.
    """
    check_file(json_file, "--json")
    wishes = {"--r": r, "--ratio": ratio, "--last": last, "--speedup": speedup}
    given = [option for option, value in wishes.items() if value is not None]
    if len(given) != 1:
        raise typer.BadParameter(
            f"give exactly one of {', '.join(wishes)}; got {', '.join(given) or 'none'}"
        )
    wish: schedule.R = 0 if r is None else read_r(r)

    from tomecore.loading import adapter_of, load

    loaded = load(model, resolution=resolution)
    adapter_of(loaded.framework).apply_patch(loaded.model)
    if ratio is not None:
        wish = schedule.Ratio(ratio)
    if last is not None:
        wish = schedule.for_tokens(loaded.model, last=last)
    if speedup is not None:
        wish = schedule.for_speedup(loaded.model, speedup)
    arithmetic = loaded.model.tome.arithmetic
    tokens = _tokens_of(loaded)
    rows = plan_table(arithmetic, tokens, wish)
    limit = arithmetic.limit(tokens, wish)
    operations = arithmetic.multiply_adds(tokens, wish)
    console.print(_table(rows, f"{model} with {_named(wish)}: {tokens} tokens"))
    console.print(
        f"Limit by arithmetic: [green]{limit:.2f}x[/green] ({operations / 1e9:.2f} billion "
        f"multiply-adds instead of {operations * limit / 1e9:.2f})"
    )
    clamped = [row for row in rows if row.clamped]
    if clamped:
        console.print(
            f"[yellow]*[/yellow] {len(clamped)} of {len(rows)} layers cannot merge as many tokens as r "
            f"says: at most half of those that are not protected ({arithmetic.protected} of this model are)."
        )
    numbers = {
        "model": model,
        "r": schedule.as_data(wish),
        "num_tokens": tokens,
        "protected": arithmetic.protected,
        "limit": limit,
        "multiply_adds": operations,
        "layers": [dataclasses.asdict(row) for row in rows],
    }
    write_numbers(json_file, numbers)


def _named(wish: schedule.R) -> str:
    return str(wish) if callable(wish) else f"r={wish}"


def _tokens_of(loaded: Loaded) -> int:
    """Return the number of tokens of one image."""
    from tomecore.frameworks import evaluating, to_tensor

    zeros = np.zeros((1, *loaded.input_shape), dtype=np.float32)
    with evaluating(loaded.model):
        loaded.model(to_tensor(loaded.model, zeros))
    return int(loaded.model.tome.tokens[0])


def _table(rows: list[PlannedLayer], title: str) -> Table:
    table = plain_table(title=escape(title))
    for heading in ("layer", "r asked", "merged", "tokens\nleft", "multiply-adds"):
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
