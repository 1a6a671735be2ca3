"""Does tomecore support the classes of PLSC and PASSL, from their sources?

    python benchmarks/plsc_sources.py /path/to/PLSC --output benchmarks/results/plsc-sources.md

The path is a checkout of PLSC, or of PASSL: the folder that contains ``plsc/`` or ``passl/``. Both were
written for Paddle 2 and are not published for Paddle 3. Their models can be imported if ``paddle.fluid``
exists, and the shim here provides just that. Each model is built small with random weights, written to a
``.pdparams`` file, loaded with its own ``load_pretrained``, and patched. For PLSC, the example of its README
runs too, and its own ToMe computes the same images. The exit status is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import logging
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import paddle

import tomecore.adapters.paddle as tome
from tomecore import __version__
from tomecore.adapters.engine.find import find_tower

SIZES = {"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4}
CLASSES = {"class_num": 7, "qkv_bias": True, **SIZES}
NORM = partial(paddle.nn.LayerNorm, epsilon=1e-6)
#: Largest relative differences allowed in float64.
HALVES, OWN = 1e-13, 1e-11

Build = Callable[[], Any]


def shim() -> None:
    """Give Paddle 3 the module ``paddle.fluid``, whose parts are now in ``paddle.base``."""
    from paddle.base import core, framework, unique_name

    fluid = ModuleType("paddle.fluid")
    for name, part in (("core", core), ("framework", framework), ("unique_name", unique_name)):
        setattr(fluid, name, part)
        sys.modules[f"paddle.fluid.{name}"] = part
    paddle.fluid = fluid  # type: ignore[attr-defined]
    sys.modules["paddle.fluid"] = fluid


def library_in(path: Path) -> str:
    """Return ``plsc`` or ``passl``, imported from the sources at ``path``; exit if it cannot be imported."""
    names = [name for name in ("plsc", "passl") if (path / name / "models").is_dir()]
    if not names:
        found = (
            ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "no folder"
        )
        sys.exit(
            f"`path` must be a checkout of PLSC or PASSL, a folder with plsc/models or passl/models in "
            f"it; {str(path)!r} is or holds: {found or 'nothing'}"
        )
    shim()
    sys.path.insert(0, str(path))
    try:
        importlib.import_module(f"{names[0]}.models")
        logger = importlib.import_module(f"{names[0]}.utils.logger")
    except ImportError as error:
        sys.exit(
            f"{names[0]} does not import: {error}. Install what it names "
            f"(pip install -r requirements.txt of {names[0].upper()}), and run again."
        )
    logger.init_logger(log_level=logging.WARNING)
    return names[0]


def models(library: str) -> dict[str, Build]:
    """Return the models to build from a library, by the name of the row."""

    def cls(path: str, **given: Any) -> Build:
        def build() -> Any:
            module, _, name = path.rpartition(".")
            models = importlib.import_module(f"{library}.models.{module}")
            # Some print, and change their arguments; DeiT's parameters have names that are free only once.
            with contextlib.redirect_stdout(io.StringIO()), paddle.utils.unique_name.guard():
                return getattr(models, name)(**copy.deepcopy(given))

        return build

    found = {
        "ViT": cls("vision_transformer.VisionTransformer", **CLASSES),
        "DeiT": cls("deit.DeitVisionTransformer", **CLASSES),
        "DeiT, distilled": cls("deit.DistilledVisionTransformer", **CLASSES),
        "MAE, finetuned": cls("mae.MAEVisionTransformer", **CLASSES, norm_layer=NORM),
        "MAE, finetuned, global pooling": cls(
            "mae.MAEVisionTransformer", **CLASSES, norm_layer=NORM, global_pool=True
        ),
    }
    if library == "passl":
        for ffn in ("mlp", "swiglu"):
            backbone = {"type": "DINOv2VisionTransformer", "ffn_layer": ffn, **SIZES}
            found[f"DINOv2, {ffn}, linear probe"] = cls(
                "dinov2.dinov2_vit.DINOv2LinearProbe", class_num=7, backbone=backbone
            )
    return found


def built(build: Build) -> tuple[Any, str]:
    """Return a model of the library, and the reason if the library cannot build it without help."""
    try:
        return build(), ""
    except NameError as error:
        if error.name != "zeros_":
            raise
        note = f"does not build by itself (NameError: {error}); with that name supplied"
    deit = next(m for name, m in sys.modules.items() if name.endswith(".models.deit"))
    with mock.patch.object(deit, "zeros_", paddle.nn.initializer.Constant(0.0), create=True):
        return build(), note


def randomise(model: Any) -> None:
    """Set values that make every part of a block matter: no zero bias, no neutral norm."""
    generator = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        noise = generator.standard_normal(parameter.shape)
        if len(parameter.shape) == 1:
            values = 0.3 * noise + (1 if name.endswith(("weight", "gamma")) else 0)
        else:
            values = 0.2 * noise
        parameter.set_value(paddle.to_tensor(values.astype("float32")))


def loaded(build: Build, folder: Path) -> tuple[Any, bool]:
    """Return a model whose weights went through a file and ``load_pretrained``, and whether all arrived."""
    path = str(folder / "weights")
    model, _ = built(build)
    randomise(model)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    paddle.save(model.state_dict(), path + ".pdparams")
    model, _ = built(build)
    model.load_pretrained(path)
    read = {name: value.numpy() for name, value in model.state_dict().items()}
    same = read.keys() == weights.keys()
    same = same and all(np.array_equal(read[name], weights[name]) for name in weights)
    model = tome.HOST.double(model)
    model.eval()
    return model, same


def difference(got: Any, expected: Any) -> float:
    """Return the largest difference, relative to the largest expected number; infinite if it is undefined."""
    if got.shape != expected.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def halves(model: Any, images: Any) -> float:
    """Return how far the two halves, in sequence, are from the forward of the block."""
    spec, _, blocks = find_tower(tome.HOST, tome.SPECS, model)
    entered: list[Any] = []
    hooks = [b.register_forward_pre_hook(lambda _, x: entered.append(x[0])) for b in blocks]
    model(images)
    for hook in hooks:
        hook.remove()
    worst = 0.0
    for block, x in zip(blocks, entered, strict=True):
        y, _ = spec.attend(tome.HOST, block, x, None, {})
        worst = max(worst, difference(spec.feed(block, y).numpy(), block(x).numpy()))
    return worst


def own_merging(library: str, model: Any, images: Any, prop_attn: bool) -> Any:
    """Return the output of the library's own ToMe, which merges correctly, but has wrong gradients."""
    own = importlib.import_module(f"{library}.models.utils.tome")
    if not hasattr(model, "global_pool"):
        model.global_pool = False  # its patch reads this attribute, which a plain ViT lacks
    own.apply_patch(model, prop_attn=prop_attn)
    model.r = 8
    return model(images).numpy()


def check(library: str, name: str, build: Build, folder: Path) -> dict[str, Any]:
    """Check one model; return the columns of the table, and ``failed``, the checks that failed."""
    _, note = built(build)
    model, same = loaded(build, folder)
    images = paddle.to_tensor(np.random.default_rng(1).standard_normal((3, 3, 64, 64)))
    plain = model(images).numpy()
    half = halves(model, images)

    tome.apply_patch(model)
    unmerged = np.array_equal(model(images).numpy(), plain)
    model.r = 16
    merged, tokens = model(images).numpy(), model.tome.tokens
    prefix, prop_attn = model.tome.protected, model.tome.prop_attn
    sizes = model.tome.sizes.numpy().sum(axis=1)
    model.train()
    output = model(images)
    (output**2).sum().backward()
    gradients = [p.grad.numpy() for p in model.parameters() if p.grad is not None]
    model.eval()
    tome.remove_patch(model)
    passed = {
        "weights came back through load_pretrained": same,
        "r = 0 is bit-identical": unmerged,
        "halves": half <= HALVES,
        "tokens": tokens == [prefix + n for n in (48, 32, 16, 8)],
        "sizes": bool((sizes == prefix + 64).all()),
        "merged output": 0 < difference(merged, plain) < float("inf"),
        "gradients": bool(gradients) and all(np.isfinite(g).all() for g in gradients),
        "prop_attn's default": prop_attn is not name.startswith("MAE"),
        "remove_patch": np.array_equal(model(images).numpy(), plain),
    }
    own: list[float | str] = []
    for prop_attn in (False, True) if library == "plsc" else ():
        other, _ = loaded(build, folder)
        if prefix > 1:
            own.append("drops a token")
            continue
        tome.apply_patch(model, r=8, prop_attn=prop_attn)
        own.append(
            difference(own_merging(library, other, images, prop_attn), model(images).numpy())
        )
        passed[f"as its own ToMe, prop_attn={prop_attn}"] = own[-1] <= OWN
    return {
        "model": name,
        "r = 0": "identical" if unmerged else "DIFFERS",
        "halves": half,
        "tokens, r = 16": " ".join(map(str, tokens)),
        "own ToMe, r = 8": own[0] if own else "-",
        "with prop_attn": own[1] if own else "-",
        "note": note or "-",
        "failed": [what for what, passed in passed.items() if not passed],
    }


def readme_example(folder: Path) -> dict[str, Any]:
    """Run the example of PLSC's README; only its import of ToMe differs."""
    from plsc.models import vision_transformer

    path = str(folder / "imagenet2012-ViT-B_16-224")
    original = vision_transformer.ViT_base_patch16_224()
    paddle.save(original.state_dict(), path + ".pdparams")

    model = vision_transformer.ViT_base_patch16_224()
    model.load_pretrained(path)
    tome.apply_patch(model)
    model.r = 16

    images = paddle.to_tensor(
        np.random.default_rng(2).standard_normal((2, 3, 224, 224)).astype("float32")
    )
    original.eval()
    model.eval()
    with paddle.no_grad():
        merged, tokens = model(images).numpy(), model.tome.tokens
        plain = original(images).numpy()
        model.r = 0
        unmerged = np.array_equal(model(images).numpy(), plain)
    passed = {
        "r = 0 is bit-identical": unmerged,
        "merged output": 0 < difference(merged, plain) < float("inf"),
        "tokens": tokens == [max(197 - 16 * (n + 1), 11) for n in range(len(tokens))],
    }
    return {
        "model": "its README's example, ViT-B/16",
        "r = 0": "identical" if unmerged else "DIFFERS",
        "halves": "-",
        "tokens, r = 16": " ".join(map(str, tokens)),
        "own ToMe, r = 8": "-",
        "with prop_attn": "-",
        "note": "float32, from its load_pretrained",
        "failed": [what for what, passed in passed.items() if not passed],
    }


def report(library: str, commit: str, rows: list[dict[str, Any]]) -> str:
    """Return the table, in Markdown."""
    columns = [name for name in rows[0] if name != "failed"]
    example = " except for the example" if library == "plsc" else ""
    columns = [name for name in columns if any(row[name] != "-" for row in rows)]
    lines = [
        f"# {library.upper()}'s own classes",
        "",
        f"{library.upper()} at {commit}; tomecore {__version__}, paddlepaddle {paddle.__version__}, "
        f"numpy {np.__version__}, Python {platform.python_version()}, {paddle.get_device()}.",
        f"Written by `benchmarks/plsc_sources.py`. Float64{example}; numbers are the largest "
        "difference relative to the largest expected number.",
        "",
        "| " + " | ".join([*columns, "passed"]) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for row in rows:
        cells = [f"{v:.1e}" if isinstance(v, float) else str(v) for v in (row[c] for c in columns)]
        lines.append("| " + " | ".join([*cells, ", ".join(row["failed"]) or "yes"]) + " |")
    return "\n".join(lines) + "\n"


def commit_of(path: Path) -> str:
    command = ["git", "-C", str(path), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "an unknown commit"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="a checkout of PLSC or of PASSL")
    parser.add_argument("--commit", help="its name, if git does not know it")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    asked = parser.parse_args(arguments)
    library = library_in(asked.path)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, build in models(library).items():
            rows.append(check(library, name, build, Path(folder)))
        if library == "plsc":
            rows.append(readme_example(Path(folder)))
    text = report(library, asked.commit or commit_of(asked.path), rows)
    print(text)
    if asked.output:
        asked.output.write_text(text)
    return int(any(row["failed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
