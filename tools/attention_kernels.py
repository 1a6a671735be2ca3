"""Write the table of attention kernels into docs/when-merging-pays.md: what PyTorch chooses on each GPU.

python tools/attention_kernels.py            # rewrite the table
python tools/attention_kernels.py --check    # exit 1 if the page is out of date

It calls PyTorch's own selector, on the stand-in for the CUDA runtime (``tests/integration/cuda_runtime``), so
it needs gcc and the CUDA build of PyTorch, and no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from pages import with_part

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "when-merging-pays.md"
RUNTIME = ROOT / "tests" / "integration" / "cuda_runtime"
BEGIN, END = (
    "<!-- attention kernels: tools/attention_kernels.py writes this -->\n",
    "<!-- attention kernels: end -->\n",
)
#: a GPU of each architecture
GPUS = {
    "75": "T4, RTX 20",
    "80": "A100",
    "86": "A10, RTX 30",
    "89": "L4, L40, RTX 40",
    "90": "H100, H200",
    "100": "B200",
    "120": "RTX 50",
}


def chosen() -> dict[str, Any]:
    """Return the output of ``cuda_runtime/selector.py``."""
    sys.path.insert(0, str(RUNTIME))
    import stand_in

    with tempfile.TemporaryDirectory() as folder:
        stand_in.build(Path(folder))
        done = stand_in.run([str(RUNTIME / "selector.py")], Path(folder))
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(found: dict[str, Any]) -> str:
    """Return a row for each architecture and each choice that dtypes share."""
    version = found["torch"].partition("+")[0]
    lines = [
        "| architecture | GPUs | dtype | no bias | a bias | the column |",
        "|---|---|---|---|---|---|",
    ]
    for architecture, choices in found["choices"].items():
        rows: dict[tuple[str, ...], list[str]] = {}
        for dtype, kernels in choices.items():
            rows.setdefault(tuple(kernels), []).append(dtype)
        for kernels, dtypes in rows.items():
            cells = f"sm_{architecture}", GPUS[architecture], ", ".join(dtypes), *kernels
            lines.append(f"| {' | '.join(cells)} |")
    return (
        "\n".join([*lines, "", f"The choices of torch {version}, for heads of 64 channels."]) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="only say whether the table is up to date"
    )
    check = parser.parse_args().check
    old = PAGE.read_text(encoding="utf-8")
    new = with_part(old, BEGIN, table(chosen()), END)
    if check and new != old:
        sys.exit(f"the table in {PAGE.name} is out of date: run tools/attention_kernels.py")
    if not check:
        PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
