"""Options that take several values: ``--r 0 8 16 "(16,-1)"`` means the same as one ``--r`` for each."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand

__all__ = ["OPTIONS", "SeveralR", "one_each"]

#: each further r: digits, a bracket, or a JSON file; another path that begins like this needs a ./
_LIKE_R = re.compile(r"\s*(\d+\s*$|[(\[]|.*\.json\s*$)")


#: the launchers torchrun and paddle.distributed.launch refuse --r: it is short for options of their own
OPTIONS = ("--r", "--schedule")


def one_each(arguments: list[str], options: tuple[str, ...] = OPTIONS) -> list[str]:
    """Repeat the option before each of its values.

    The values of an option continue as long as they look like an r: digits, text that opens with a
    bracket, or the name of a JSON file. Arguments after ``--`` are not changed.
    """
    found: list[str] = []
    current, takes_next = "", False
    for place, argument in enumerate(arguments):
        if argument == "--":
            return found + arguments[place:]
        name, has_value, _ = argument.partition("=")
        if takes_next:
            takes_next = False
        elif name in options:
            current, takes_next = name, not has_value
        elif current and _LIKE_R.match(argument):
            found.append(current)
        else:
            current = ""
        found.append(argument)
    return found


class SeveralR(TyperCommand):
    """A command whose ``--r`` takes several values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, one_each(args))
