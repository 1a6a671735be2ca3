"""``tomecore parity``: whether two models agree, layer by layer, and if not, where they diverge and why."""

from __future__ import annotations

import warnings
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.markup import escape

from tomecore.cli._files import check_file, write_numbers
from tomecore.cli._images import unlabelled
from tomecore.cli._output import console, counted, errors, print_error, say
from tomecore.cli._progress import Step, prepare_kernels, steps
from tomecore.cli._several import SeveralR
from tomecore.cli._shared import MODELS, Json, Resolution, app, label_of, read_r
from tomecore.errors import ArgumentValueError, ClampWarning, TomeError

if TYPE_CHECKING:
    from tomecore.loading import Loaded


class Precision(str, Enum):
    """The precision to convert the weights to."""

    float64 = "float64"
    float32 = "float32"


class Convert(str, Enum):
    """The direction in which to copy weights."""

    a_to_b = "a-to-b"
    b_to_a = "b-to-a"


@app.command(cls=SeveralR)
def parity(
    a: Annotated[str, typer.Argument(metavar="A", help=MODELS, show_default=False)],
    b: Annotated[
        str,
        typer.Argument(metavar="B", help="Another model, of any framework.", show_default=False),
    ],
    images: Annotated[
        str | None,
        typer.Option(
            "--images",
            help="A folder of images, prepared once for both as A needs them; or the word digits.",
        ),
    ] = None,
    random: Annotated[
        int | None,
        typer.Option(
            "--random", min=1, help="Instead: this many images of noise.", show_default="4"
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Use at most this many images, spread evenly.")
    ] = 32,
    convert: Annotated[
        Convert | None,
        typer.Option("--convert", help="Give one model the other's weights, in its own layout."),
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Use the weights that their library offers.")
    ] = False,
    weights_a: Annotated[
        Path | None, typer.Option("--weights-a", help="A file: safetensors, .pth or .pdparams.")
    ] = None,
    weights_b: Annotated[Path | None, typer.Option("--weights-b", help="The same for B.")] = None,
    r: Annotated[
        list[str],
        typer.Option(
            "--r",
            help='Tokens merged per layer: 8, "(16, -1)", "[0, 0, 30]" or tuned.json; several in a row.',
        ),
    ] = ["8"],  # noqa: B006
    dtype: Annotated[
        Precision,
        typer.Option(
            "--dtype", help="float64 shows faults without rounding; float32 shows near-ties."
        ),
    ] = Precision.float64,
    rtol: Annotated[
        float | None,
        typer.Option(
            "--rtol",
            min=0,
            help="Allowed difference, relative to the largest element.",
            show_default="1e-9 in float64, 1e-4 in float32",
        ),
    ] = None,
    gap: Annotated[
        float | None,
        typer.Option(
            "--gap",
            min=0,
            help="Similarities nearer than this may be decided differently.",
            show_default="that of --rtol",
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per forward pass.")] = 8,
    resolution: Resolution = None,
    json_file: Json = None,
) -> None:
    """Check whether two models agree; if not, show in which layer and half of it, and the likely cause.

    The exit code is 0 if they agree except for rounding, 1 if they diverge, 2 if they could not be
    compared. Layers count from 0.

    Example: tomecore parity timm:vit_tiny_patch16_224 paddle:tiny --convert a-to-b
    """
    try:
        check_file(json_file, "--json")
        if images is not None and random is not None:
            raise typer.BadParameter("give --images or --random, not both")
        schedules = [read_r(text) for text in r]
        results = []
        with steps("importing the libraries") as step:
            from tomecore.parity import diagnose

            options = (pretrained, (weights_a, weights_b), resolution, dtype, convert)
            first, second = _load(a, b, *options, step)
            arrays, what = _images(first, images, random, limit)
            prepare_kernels(step, "cpu", dtype.value)
            for index, (text, schedule) in enumerate(zip(r, schedules, strict=True), start=1):
                step(f"comparing {index} of {len(schedules)}: r = {label_of(text, schedule)}")
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ClampWarning)  # the table shows what was merged
                    results.append(
                        diagnose(
                            *(first.model, second.model, arrays),
                            r=schedule,
                            rtol=rtol,
                            gap=gap,
                            batch=batch,
                        )
                    )
        say(f"a: {a}, b: {b}, {what}", markup=False)
        for found in results:
            console.print(str(found), markup=False, highlight=False, soft_wrap=True)
        agrees = all(found.agrees for found in results)
        numbers = {
            "a": a,
            "b": b,
            "images": what,
            "dtype": dtype.value,
            "agrees": agrees,
            "results": [found.as_dict() for found in results],
        }
        write_numbers(json_file, numbers)
    except (typer.BadParameter, typer.Exit, typer.Abort):
        raise
    except TomeError as error:
        print_error(str(error))
        raise typer.Exit(2) from None
    except Exception:  # noqa: BLE001 (exit code 1 says only that the models diverge)
        errors.print_exception()
        raise typer.Exit(2) from None
    if not agrees:
        wrong = ", ".join(f"r={found.r}" for found in results if not found.agrees)
        say(f"[red]diverge[/red] at {escape(wrong)}")
    elif len(results) > 1:
        say(f"[green]agree[/green] at all {len(results)} r")
    raise typer.Exit(0 if agrees else 1)


def _load(
    a: str,
    b: str,
    pretrained: bool,
    weights: tuple[Path | None, Path | None],
    resolution: int | None,
    dtype: Precision,
    convert: Convert | None,
    step: Step,
) -> tuple[Loaded, Loaded]:
    """Return both models in one precision, with the weights that the options name."""
    from tomecore.loading import adapter_of, has_random_weights, load
    from tomecore.parity import transfer_weights

    overwritten = {None: (), Convert.a_to_b: (1,), Convert.b_to_a: (0,)}[convert]
    for index, (name, file) in enumerate(zip((a, b), weights, strict=True)):
        if index in overwritten and file is not None:
            raise typer.BadParameter(
                f"--convert {convert.value if convert else ''} replaces the weights of "
                f"--weights-{'ab'[index]}; give one of the two"
            )
        if has_random_weights(name, pretrained, file) and convert is None:
            raise typer.BadParameter(
                f"{name} has random weights, so nothing can agree with it; give --weights-{'ab'[index]} "
                "FILE or --pretrained, or --convert a-to-b to give B the weights of A"
            )
    found = []
    for index, (name, file) in enumerate(zip((a, b), weights, strict=True)):
        step(f"building {name}")
        trained = pretrained and file is None and index not in overwritten
        found.append(load(name, pretrained=trained, weights=file, resolution=resolution))
    first, second = found
    _check_shapes(first, second)
    for one in found:
        if dtype is Precision.float64:
            adapter_of(one.framework).HOST.double(one.model)
        else:
            one.model.float()
    if convert is Convert.a_to_b:
        transfer_weights(first.model, second.model)
    if convert is Convert.b_to_a:
        transfer_weights(second.model, first.model)
    return first, second


def _check_shapes(first: Loaded, second: Loaded) -> None:
    """Raise unless both models take the same images."""
    if first.input_shape == second.input_shape:
        return
    what = (
        f"{first.name} takes images of (channels, height, width) {first.input_shape} and {second.name} of "
        f"{second.input_shape}; both must take the same images"
    )
    if first.input_shape[0] != second.input_shape[0]:
        raise ArgumentValueError(
            f"{what}. No option changes the channels: compare models with as many. If the function of your "
            "own model returns (model, Preprocess(size, mean, std)), mean and std need one number for each "
            "channel"
        )
    raise ArgumentValueError(f"{what}: try --resolution")


def _images(
    loaded: Loaded, images: str | None, random: int | None, limit: int
) -> tuple[np.ndarray, str]:
    """Return images (n, C, H, W) as ``loaded`` takes them, and a description of them."""
    if images is None:
        count = random or 4
        noise = np.random.default_rng(0).standard_normal((count, *loaded.input_shape))
        return noise, f"{counted(count, 'image')} of noise"
    return unlabelled(loaded, images, limit)
