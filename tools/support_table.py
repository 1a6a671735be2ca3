"""Write the table of supported models into README.md, from the families the adapters know.

python tools/support_table.py            # rewrite the table
python tools/support_table.py --check    # exit 1 if the README is behind
"""

from __future__ import annotations

import argparse
import sys

from readme import README, with_part

import tomecore.adapters.paddle
import tomecore.adapters.torch
from tomecore.adapters import Spec

BEGIN, END = "<!-- supported: tools/support_table.py writes this -->\n", "<!-- supported: end -->\n"


def short(names: tuple[str, ...] | dict[str, str]) -> str:
    """Class names without their modules, each once."""
    last = dict.fromkeys(name.rpartition(".")[2] for name in names)
    return ", ".join(f"`{name}`" for name in last if name != "*")


def row(framework: str, spec: Spec) -> str:
    notes = spec.notes or "-"
    return f"| {spec.family} | {framework} | {short(dict(spec.towers)) or 'any'} | {notes} |"


def table() -> str:
    """The table, one row for each spec, in the order in which they are asked."""
    lines = ["| models | framework | classes | notes |", "|---|---|---|---|"]
    for framework, adapter in (
        ("torch", tomecore.adapters.torch),
        ("Paddle", tomecore.adapters.paddle),
    ):
        fallback = [adapter.HOST.fallback] if adapter.HOST.fallback else []
        lines += [row(framework, spec) for spec in (*adapter.SPECS, *fallback)]
    return "\n".join(lines) + "\n"


def updated(readme: str) -> str:
    """``readme`` with the table in its place."""
    return with_part(readme, BEGIN, table(), END)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="only say whether the table is up to date"
    )
    check = parser.parse_args().check
    old = README.read_text(encoding="utf-8")
    new = updated(old)
    if check and new != old:
        sys.exit("the table of supported models in README.md is behind: run tools/support_table.py")
    if not check:
        README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
