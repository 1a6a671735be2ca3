"""Write the table of models into docs/supported.md, from the specs of the adapters.

python tools/support_table.py            # rewrite the table
python tools/support_table.py --check    # exit 1 if the page is out of date
"""

from __future__ import annotations

import argparse
import sys

from pages import SUPPORTED, with_part

import tomecore.adapters.paddle
import tomecore.adapters.torch
from tomecore.adapters import Spec

BEGIN, END = "<!-- supported: tools/support_table.py writes this -->\n", "<!-- supported: end -->\n"


def short(names: tuple[str, ...] | dict[str, str]) -> str:
    """Return the class names without their modules, each once."""
    last = dict.fromkeys(name.rpartition(".")[2] for name in names)
    return ", ".join(f"`{name}`" for name in last if name != "*")


def row(framework: str, spec: Spec) -> str:
    notes = spec.notes or "-"
    return f"| {spec.family} | {framework} | {short(dict(spec.towers)) or 'any'} | {notes} |"


def table() -> str:
    """Return the table, one row for each spec, in the order in which the specs are tried."""
    lines = ["| models | framework | classes | notes |", "|---|---|---|---|"]
    for framework, adapter in (
        ("torch", tomecore.adapters.torch),
        ("Paddle", tomecore.adapters.paddle),
    ):
        fallback = [adapter.HOST.fallback] if adapter.HOST.fallback else []
        lines += [row(framework, spec) for spec in (*adapter.SPECS, *fallback)]
    return "\n".join(lines) + "\n"


def updated(page: str) -> str:
    """Return ``page`` with the new table in its place."""
    return with_part(page, BEGIN, table(), END)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="only say whether the table is up to date"
    )
    check = parser.parse_args().check
    old = SUPPORTED.read_text(encoding="utf-8")
    new = updated(old)
    if check and new != old:
        sys.exit(
            "the table of models in docs/supported.md is out of date: run tools/support_table.py"
        )
    if not check:
        SUPPORTED.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
