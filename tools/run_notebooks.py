"""Run the notebooks and keep their outputs, without the parts that differ between machines.

python tools/run_notebooks.py            # all of them, about five minutes on one core
python tools/run_notebooks.py notebooks/torch.ipynb
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"


def executed(path: Path, settings: Mapping[str, str] | None = None, timeout: int = 1800) -> Any:
    """Run the notebook at ``path`` from a fresh start in its folder, and return it.

    Args:
        path: of the notebook; the file is left as it is.
        settings: environment variables for it, such as ``TOME_IMAGES``.
        timeout: seconds for one cell.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    # Draw figures into the notebook, whatever backend the caller uses, without warnings of libraries.
    environment = {
        **os.environ,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONWARNINGS": "ignore",
        **(settings or {}),
    }
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": path.parent}},
    )
    client.execute(env=environment)
    return cleaned(notebook)


def cleaned(notebook: Any) -> Any:
    """Return the notebook without clock times, warnings and names of the machine."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
            for out in cell.outputs:
                if "image/png" in out.get("data", {}):
                    out["data"].pop("text/plain", None)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", type=Path, nargs="*", help="without: all of them")
    for path in parser.parse_args().notebooks or sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(executed(path), path)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
