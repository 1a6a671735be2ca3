"""Parts that the commands share: the app, common options, and how they are read."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from tomecore import matching
from tomecore.cli._files import json_option
from tomecore.cli._output import errors
from tomecore.errors import ArgumentValueError
from tomecore.schedule import R, Tuned, parse_r
from tomecore.schedule.saved import read_schedule

__all__ = [
    "MODELS",
    "PICTURES",
    "RANDOM",
    "Json",
    "Matching",
    "ModelName",
    "Pretrained",
    "Resolution",
    "Weights",
    "app",
    "label_of",
    "paragraphs",
    "read_r",
    "warn_of_other_models",
]

app = typer.Typer(
    name="tomecore",
    help="Token Merging for vision transformers, in every framework.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,  # a fault of tomecore is reported with Python's own, shorter traceback
)

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
#: a sentence about weights that no option names
RANDOM = (
    "The weights are random (neither --pretrained nor --weights): only the speed is meaningful."
)

#: words before the names of models, for completion
_SOURCES = (
    *("timm:", "torchvision:", "transformers:", "open_clip:", "paddleclas:", "ppim:"),
    *(
        "paddle:tiny",
        "paddle:small",
        "paddle:base",
        "paddle:large",
        "digits:torch",
        "digits:paddle",
    ),
)
#: the forms of a model's name
MODELS = (
    "timm:NAME, torchvision:NAME, transformers:NAME (an id, a folder or a type), open_clip:NAME, "
    "paddleclas:NAME, ppim:NAME, paddle:SIZE, digits:torch, digits:paddle, module:function or "
    "file.py:function."
)


def complete_model(incomplete: str) -> list[str]:
    """Return the beginnings of names of models that continue what was typed, for a shell's completion."""
    return [one for one in _SOURCES if one.startswith(incomplete)]


ModelName = Annotated[
    str,
    typer.Option("--model", "-m", help=MODELS, autocompletion=complete_model, show_default=False),
]
Pretrained = Annotated[
    bool,
    typer.Option(
        "--pretrained",
        help="Download the trained weights that the model's library offers; by default weights are random.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", help="A file of weights: safetensors, .pth or .pdparams."),
]
Resolution = Annotated[
    int | None,
    typer.Option(
        "--resolution", min=1, help="Pixels on a side of the input.", show_default="the model's own"
    ),
]


def _matching(name: str) -> str:
    """Return ``name``; raise unless a matching has it."""
    matching.find(name)
    return name


Matching = Annotated[
    str,
    typer.Option(
        "--matching",
        help="Which tokens merge: " + ", ".join(matching.names()) + ".",
        callback=_matching,
        autocompletion=lambda: list(matching.names()),
    ),
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        help="Write all numbers to this file; - prints them, and tables go to stderr.",
        callback=json_option,
    ),
]


def paragraphs(text: str) -> str:
    """Return a docstring without the line breaks inside its paragraphs, for ``--help`` of any width."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def label_of(text: str, r: R) -> str:
    """Return how a table names an r: a file by its name, anything else by its value."""
    return text.strip() if isinstance(r, Tuned) else str(r)


def warn_of_other_models(schedules: Sequence[R], name: str) -> None:
    """Print a warning if a schedule was found for a model with another name.

    It is not an error, because a model can have several names: a file of weights, a folder, a function. A
    model of another size, or with another matching, is refused when r is set.
    """
    for schedule in schedules:
        if isinstance(schedule, Tuned) and schedule.model not in (None, name):
            errors.print(
                f"[yellow]warning:[/yellow] the schedule was found for {escape(str(schedule.model))}, and "
                f"the model is {escape(name)}: with other weights, search again",
                highlight=False,
                soft_wrap=True,
            )


def read_r(text: str, option: str = "--r") -> R:
    """Return the r in a typed text: 16, "(16, -1)", "[0, 0, 30]", or the name of a JSON file of a search."""
    if text.strip().endswith(".json"):
        try:
            return read_schedule(text.strip())
        except ArgumentValueError as error:
            raise typer.BadParameter(str(error), param_hint=option) from None
    try:
        value = ast.literal_eval(text.strip())
    except (SyntaxError, ValueError):
        value = None
    if not isinstance(value, int | tuple | list) or isinstance(value, bool):
        raise typer.BadParameter(
            f'{text!r} is not an r; allowed are a whole number (16), "(16, -1)" for mean and inflect, '
            '"[0, 0, 30]" for one number per layer, and tuned.json, a file that tomecore tune wrote',
            param_hint=option,
        )
    parse_r(len(value) or 1 if isinstance(value, list) else 1, value)
    r: R = value
    return r
