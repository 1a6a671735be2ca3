"""Other blocks of timm for VisionTransformer and NaFlexVit: post-norm, and parallel branches.

If attention and MLP run in parallel, no merge can happen between them: the whole block runs as it
is, with the bias as its mask, and tokens merge after it. Differential attention has two keys per
head, which are averaged as heads are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tomecore.adapters.engine.host import Host
from tomecore.adapters.engine.spec import Kwargs, matches
from tomecore.adapters.engine.swap import original_class
from tomecore.adapters.families.timm.common import (
    ATTENTIONS,
    DROP_PATHS,
    MLPS,
    NORMS,
    SCALES,
    TOWERS,
    feed_post_norm,
)
from tomecore.adapters.families.timm.vit import VIT
from tomecore.backends import Array, Bias, Tokens

__all__ = ["DIFF_PARALLEL", "FRAMEWORK", "PARALLEL", "RES_POST", "SPECS", "THINGS"]

FRAMEWORK = "torch"

_BLOCKS = "timm.models.vision_transformer"
_LIST = ("torch.nn.modules.container.ModuleList",)
_DROPOUTS = ("torch.nn.modules.dropout.Dropout",)


def attend_post_norm(
    host: Host, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> Tokens:
    return x + block.drop_path1(block.norm1(block.attn(x, attn_mask=bias)))


def attend_branches(
    host: Host, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> Tokens:
    if bias is None:
        return x + total([branch(x) for branch in block.attns])
    outputs = []
    for branch in block.attns:
        y = branch.attn(branch.norm(x), attn_mask=bias)
        outputs.append(branch.drop_path(branch.ls(y)))
    return x + total(outputs)


def feed_branches(block: Any, x: Tokens) -> Tokens:
    return x + total([branch(x) for branch in block.ffns])


def total(outputs: list[Array]) -> Array:
    first, *others = outputs
    for other in others:
        first = first + other
    return first


def unknown_branch(block: Any) -> str | None:
    """Return why a branch is unknown, or None; its modules are called one by one, so they must be known."""
    known = {
        "attns": (("norm", NORMS), ("attn", ATTENTIONS), ("ls", SCALES), ("drop_path", DROP_PATHS)),
        "ffns": (("norm", NORMS), ("mlp", MLPS), ("ls", SCALES), ("drop_path", DROP_PATHS)),
    }
    for name, parts in known.items():
        for branch in getattr(block, name):
            found = [(part, original_class(child)) for part, child in branch.named_children()]
            if [part for part, _ in found] != [part for part, _ in parts] or not all(
                matches(cls, allowed) for (_, cls), (_, allowed) in zip(found, parts, strict=True)
            ):
                inside = ", ".join(f"{part}: {cls.__qualname__}" for part, cls in found)
                return f"a branch of {name} holds other modules than tomecore knows ({inside})"
    return None


def attend_parallel(
    host: Host, block: Any, x: Tokens, bias: Bias | None, block_kwargs: Kwargs
) -> Tokens:
    """Compute the whole block with its own forward."""
    forward: Any = original_class(block).forward  # type: ignore[attr-defined]
    return forward(block, x, attn_mask=bias)


#: the spec that all blocks of these towers share
_VIT = replace(VIT, towers=TOWERS, notes="")

RES_POST = replace(
    _VIT,
    family="timm VisionTransformer (post-norm)",
    blocks=(f"{_BLOCKS}.ResPostBlock",),
    children={
        "attn": ATTENTIONS,
        "norm1": NORMS,
        "drop_path1": DROP_PATHS,
        "mlp": MLPS,
        "norm2": NORMS,
        "drop_path2": DROP_PATHS,
    },
    attend=attend_post_norm,
    feed=feed_post_norm,
)

THINGS = replace(
    _VIT,
    family="timm VisionTransformer (parallel things)",
    blocks=(f"{_BLOCKS}.ParallelThingsBlock",),
    children={"attns": _LIST, "ffns": _LIST},
    attend=attend_branches,
    feed=feed_branches,
    key="attns.*.attn.k_norm",
    bypasses_biased=("attns.*",),
    refuse=unknown_branch,
)

# A parallel block runs with its own forward, so its projections may be of any class.
_PARALLEL_CHILDREN = {
    "in_norm": NORMS,
    "in_proj": ("*",),
    "q_norm": NORMS,
    "k_norm": NORMS,
    "attn_drop": _DROPOUTS,
    "mlp_drop": _DROPOUTS,
    "mlp_act": ("*",),
    "out_proj": ("*",),
    "attn_out_proj": ("*",),
    "mlp_out_proj": ("*",),
    "ls": SCALES,
    "drop_path": DROP_PATHS,
}

PARALLEL = replace(
    _VIT,
    family="timm VisionTransformer (parallel)",
    blocks=(f"{_BLOCKS}.ParallelScalingBlock",),
    children=_PARALLEL_CHILDREN,
    tensors=("mlp_bias", "qkv_bias"),
    attend=attend_parallel,
    feed=None,
    key="k_norm",
    key_heads=2,
)

DIFF_PARALLEL = replace(
    _VIT,
    family="timm VisionTransformer (differential, parallel)",
    blocks=(f"{_BLOCKS}.DiffParallelScalingBlock",),
    children={**_PARALLEL_CHILDREN, "sub_norm": NORMS},
    tensors=(
        "mlp_bias",
        "lambda_a",
        "lambda_b",
        "lambda_q1",
        "lambda_k1",
        "lambda_q2",
        "lambda_k2",
    ),
    attend=attend_parallel,
    feed=None,
    key="k_norm",
)

SPECS = (RES_POST, THINGS, PARALLEL, DIFF_PARALLEL)
