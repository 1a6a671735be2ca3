"""Which of timm's published ViTs merge correctly: ``python benchmarks/census.py``.

The census covers the pretrained tags of ``timm.list_pretrained()`` whose architecture is in one of the
modules of plain ViTs in ``PLAIN`` below. With timm 1.0.31 these are 498, of which 333 are in
``vision_transformer`` and ``deit`` and 165 in the others. ``--others`` covers all other tags too:
a model that is not a plain ViT must be refused, or be right.

No weights are loaded. Each model gets the real arguments of its architecture, but with a small depth, width,
image and number of heads. Its blocks must have the same classes as those of the full model, which is built
without memory. Parameters are random, including LayerScale. Models that turn out to be identical share one
check. A model is

- right: r=0 changes no bit; the two halves of each block compute its forward (to the last bit, or within
  1e-12 if another kernel runs); token counts follow the schedule; sizes and sources agree; output and
  intermediate layers keep their shapes and are finite; remove_patch restores the output;
- refused: ``apply_patch`` or the forward says why;
- wrong: anything else.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import _registry
from torch import nn

import tomecore as tc
import tomecore.adapters.torch as tome
from tomecore.adapters.engine.find import find_tower
from tomecore.errors import UnsupportedModelError

PLAIN = (
    "vision_transformer",
    "deit",
    "eva",
    "beit",
    "vision_transformer_relpos",
    "naflexvit",
    "qwen3_vit",
    "deepseek_vit",
    "gemma4_vit",
)
DEPTH = 4
SCHEDULE = [4, 0, 3, 2]
RESULTS = Path(__file__).parent / "results"


class Wrong(Exception):
    """The patched model broke a law."""


def module_of(tag: str) -> str:
    """Return the module of timm that defines a tag ``architecture.weights``."""
    return str(_registry._model_to_module[tag.partition(".")[0]])


def tags(modules: Iterable[str] | None) -> list[str]:
    """Return the pretrained tags of these modules, or of all others if None."""
    every = timm.list_pretrained()
    if modules is None:
        return [tag for tag in every if module_of(tag) not in PLAIN]
    return [tag for tag in every if module_of(tag) in set(modules)]


@functools.lru_cache(maxsize=1)  # tags of one architecture are adjacent
def full(architecture: str) -> nn.Module:
    """Build the published architecture, without memory."""
    with torch.device("meta"):
        return timm.create_model(architecture).eval()


def refusal(architecture: str) -> str | None:
    """Return why the published architecture cannot be patched."""
    try:
        tome.remove_patch(tome.apply_patch(full(architecture)))
    except UnsupportedModelError as error:
        return str(error)
    return None


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that merge, in order."""
    return find_tower(tome.HOST, tome.SPECS, model)[2]


def anatomy(block: nn.Module) -> tuple[Any, ...]:
    """Return the classes and names of a block's parts, whatever their size."""
    tensors = [n for n, _ in block.named_parameters()] + [n for n, _ in block.named_buffers()]
    return (*((path, type(module)) for path, module in block.named_modules()), *sorted(tensors))


def sizes_of(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield arguments for a small model of this architecture, smallest first."""
    embeds = [m for path, m in model.named_modules() if re.search(r"(patch_embed|embeds)$", path)]
    ratio = (
        embeds[0].feat_ratio(as_scalar=False)
        if hasattr(embeds[0], "feat_ratio")
        else embeds[0].patch_size
    )
    sides = ratio if isinstance(ratio, (tuple, list)) else (ratio, ratio)
    grid = 6 if type(model).__name__.startswith("Gemma4") else 8
    image = {"img_size": tuple(int(side) * grid for side in sides), "depth": DEPTH}
    attentions = [m for b in blocks_of(model) for m in b.modules() if hasattr(m, "num_heads")]
    heads = attentions[0].num_heads if attentions else 0
    width = getattr(model, "embed_dim", 0)
    if heads and width % heads == 0:
        groups = {getattr(m, "num_kv_heads", heads) for m in attentions}
        few = 4 if min(groups) < heads else 2
        less = {**image, "embed_dim": few * (width // heads), "num_heads": few}
        if few == 4:  # grouped queries, in all blocks or in some
            less["num_kv_heads"] = 2 if len(groups) == 1 else (4, 2, 2, 4)
        yield less
        yield {**less, "num_kv_heads": (few,) * DEPTH}
    yield image


def small(tag: str) -> nn.Module:
    """Build a model with the same anatomy that is small enough to run.

    Raises:
        LookupError: no choice of sizes gives the blocks of the full model.
    """
    published = full(tag.partition(".")[0])
    wanted = {anatomy(block) for block in blocks_of(published)}
    tried = []
    for sizes in sizes_of(published):
        try:
            model = timm.create_model(tag, **sizes).eval()
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            tried.append(f"{sizes}: {error}")
            continue
        if {anatomy(block) for block in blocks_of(model)} == wanted:
            model.census_image = sizes["img_size"]  # type: ignore[assignment]
            return model
        tried.append(f"{sizes}: blocks of another anatomy")
    raise LookupError("; ".join(tried))


def signature(model: nn.Module) -> str:
    """Return a key that is equal for models between which a check sees no difference."""
    plain = (bool, int, float, str, tuple, type(None))
    attributes = [
        (path, sorted((k, repr(v)) for k, v in vars(m).items() if isinstance(v, plain)))
        for path, m in model.named_modules()
    ]
    tensors = [(n, tuple(p.shape)) for n, p in model.state_dict().items()]
    return repr((model, attributes, tensors))


def randomise(model: nn.Module) -> None:
    """Convert to float64, without any neutral norm, bias or LayerScale."""
    model.double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(0.1 * noise + (0.5 if parameter.ndim == 1 else 0))


def check(model: nn.Module) -> None:
    """Return if the model is right; otherwise raise Wrong, or the error of apply_patch."""
    randomise(model)
    image = torch.rand(2, 3, *model.census_image, dtype=torch.float64)  # type: ignore[misc]
    before, layers = model(image), intermediates(model, image)
    tome.apply_patch(model, trace_source=True)
    same("r=0", model(image), before)
    halves(model, image)
    model.r = SCHEDULE
    after = model(image)
    handle = tome.handle(model)
    counts = tc.tokens_per_layer(
        DEPTH, SCHEDULE, handle.source.shape[1], protected=handle.protected
    )
    law("tokens", handle.tokens == counts, f"{handle.tokens} instead of {counts}")
    law("sizes", bool((handle.sizes.sum(1) == handle.source.shape[1]).all()), handle.sizes.sum(1))
    for sizes, source in zip(handle.sizes, handle.source, strict=True):
        law("source", torch.equal(source.bincount().to(sizes.dtype), sizes), "disagrees with sizes")
    law("shape", after.shape == before.shape, f"{after.shape} instead of {before.shape}")
    law("finite", bool(after.isfinite().all()), "output has NaN or infinity")
    law("merging", not torch.equal(after, before), "r changes nothing")
    for got, want in zip(intermediates(model, image), layers, strict=True):
        law("intermediates", got.shape == want.shape, f"{got.shape} instead of {want.shape}")
    tome.remove_patch(model)
    same("removed", model(image), before)


def halves(model: nn.Module, image: torch.Tensor) -> None:
    """Compare the halves of each block with its forward, on the real input of the block."""
    spec, _, blocks = find_tower(tome.HOST, tome.SPECS, model)
    entered: list[tuple[Any, Any, Any]] = []

    def note(block: Any, args: Any, kwargs: Any, y: Any) -> None:
        entered.append((args, kwargs, y))

    hooks = [block.register_forward_hook(note, with_kwargs=True) for block in blocks]
    model(image)
    for hook in hooks:
        hook.remove()
    for block, ((x, *rest), kwargs, whole) in zip(blocks, entered, strict=True):
        named = {**dict(zip(spec.arguments, rest, strict=False)), **kwargs}
        given = {k: v for k, v in named.items() if v is not None}
        y = spec.attend(tome.HOST, block, x, None, given)
        y = y[0] if isinstance(y, tuple) else y
        y = y if spec.feed is None else spec.feed(block, y)
        error = float((y - whole).abs().max() / whole.abs().max())
        law("halves", error <= (1e-12 if spec.bypasses else 0), f"differ by {error:.1e}")


def intermediates(model: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    reader: Callable[..., Any] | None = getattr(model, "forward_intermediates", None)
    return [] if reader is None else list(reader(image, intermediates_only=True))


def law(name: str, holds: bool, otherwise: object) -> None:
    if not holds:
        raise Wrong(f"{name}: {otherwise}")


def same(name: str, got: torch.Tensor, want: torch.Tensor) -> None:
    law(name, torch.equal(got, want), "output differs")


@torch.no_grad()
def verdict(model: nn.Module) -> tuple[str, str]:
    """Return ("right" | "refused" | "wrong", why)."""
    try:
        check(model)
    except UnsupportedModelError as error:
        return "refused", str(error)
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {error}"
    return "right", ""


def judge(tag: str, known: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Return one line of the census; ``known`` contains the verdicts so far by signature."""
    state, why = "refused", refusal(tag.partition(".")[0])
    if why is None:
        try:
            model = small(tag)
        except LookupError as error:
            state, why = "wrong", f"apply_patch takes it, but no small one could be built: {error}"
        else:
            sign = signature(model)
            if sign not in known:
                known[sign] = verdict(model)
            state, why = known[sign]
    return {"tag": tag, "module": module_of(tag), "verdict": state, "why": short(why)}


def short(why: str) -> str:
    """Return a reason without the parts that differ between models that are refused for it."""
    why = re.sub(r"`model` .*? (has a window_size|holds no)(?: \(.*?\))?", r"the model \1", why)
    why = re.sub(r"\. ?Supported: .*|; (see|call|merging could).*|\. Call .*", "", why)
    return re.sub(r"blocks\[\d+\]", "blocks[*]", why)


def table(cells: list[dict[str, str]]) -> str:
    """Return Markdown: counts by module, then each architecture that is not right."""
    states = ("right", "refused", "wrong")
    modules = list(dict.fromkeys(cell["module"] for cell in cells))
    lines = [f"| timm module | checkpoints | {' | '.join(states)} |", "|---|---:|---:|---:|---:|"]
    for module in [*modules, "all"]:
        found = [cell for cell in cells if module in ("all", cell["module"])]
        counts = [sum(cell["verdict"] == state for cell in found) for state in states]
        lines.append(f"| {module} | {len(found)} | {' | '.join(map(str, counts))} |")
    reasons = collections.defaultdict(list)
    for cell in cells:
        if cell["verdict"] != "right":
            reasons[cell["verdict"], cell["why"]].append(cell["tag"])
    for (state, why), group in sorted(reasons.items()):
        names = sorted({tag.partition(".")[0] for tag in group})
        lines += ["", f"**{state}**, {len(group)} checkpoints: {why}", "", ", ".join(names)]
    return "\n".join(lines) + "\n"


def census(wanted: list[str], report: Callable[[str], None] = print) -> list[dict[str, str]]:
    """Judge each tag, in order."""
    known: dict[str, tuple[str, str]] = {}
    cells = []
    for number, tag in enumerate(wanted, 1):
        cells.append(judge(tag, known))
        report(f"{number}/{len(wanted)} {tag}: {cells[-1]['verdict']} {cells[-1]['why'][:120]}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--others", action="store_true", help="all tags outside the plain modules")
    parser.add_argument("--only", help="tags that contain this text")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    options = parser.parse_args()
    wanted = tags(None if options.others else PLAIN)
    cells = census([tag for tag in wanted if (options.only or "") in tag])
    print(table(cells))
    if options.out:
        versions = {"timm": timm.__version__, "torch": str(torch.__version__)}
        versions |= {"tomecore": tc.__version__, "python": platform.python_version()}
        kept = {"versions": versions, "checkpoints": cells}
        options.out.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(table(cells))


if __name__ == "__main__":
    main()
