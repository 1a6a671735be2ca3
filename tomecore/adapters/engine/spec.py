"""The spec: a description of one block class. One small file per model library holds its specs.

A spec never copies a block's forward. It writes the two halves in terms of the block's own submodules, and
lists every child that they use, so that a block with one more child is refused.
"""

from __future__ import annotations

import inspect
import itertools
import types
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from tomecore.adapters.engine.state import TokenState
from tomecore.adapters.engine.swap import original_class
from tomecore.backends import Array, Mask, Tokens

__all__ = [
    "Anatomy",
    "Kwargs",
    "Projected",
    "Spec",
    "Trim",
    "attribute",
    "attributes",
    "defines_forward",
    "has_own_forward",
    "helper_methods",
    "nothing",
    "qualified_name",
    "replaced_forward",
]

#: the arguments of a block other than its tokens, by name, without those that are None
Kwargs = dict[str, Any]
#: queries, keys and values, (B, N, H, D) each, and the scale of the scores
Projected = tuple[Array, Array, Array, float]


def nothing(module: Any) -> None:
    """Return None: the check of a family that has nothing more to check."""


def never(tower: Any) -> bool:
    return False


def not_mae(tower: Any) -> bool:
    """Return False for masked autoencoders, trained without proportional attention (ToMe, appendix)."""
    names = [qualified_name(cls) for cls in original_class(tower).__mro__]
    return not any(".mae." in n or ".MAE" in n or ".MaskedAutoencoder" in n for n in names)


def has_hooks(host: Any, module: Any) -> bool:
    return bool(host.hooked(module))


@dataclass(eq=False)
class Anatomy:
    """The queries, keys and values of a block's attention; queries of the first tokens only, if needed.

    Args:
        of: the ``Spec.attend`` that this belongs to; a spec with another ``attend`` loses its anatomy.
        attention: path of the attention below the block.
        norm: path below the block of the module whose output enters the attention; "" if the block's tokens
            enter it as they are.
        qkv: ``(host, attention, y, block_kwargs, rows) -> (q, k, v, scale)``: queries (B, rows, H, D) of the
            first ``rows`` tokens of y (B, N, C), or of all tokens if ``rows`` is None, and keys and values
            (B, N, H, D) of all tokens. They are normed and rotated as in the attention, whose scores are
            q k^T times ``scale``, plus the bias. ``block_kwargs`` is as in ``Spec.attend``.
        classes: names of the attention classes that this describes -> the children and parameters that they
            may have.
    """

    of: Callable[..., Any]
    attention: str
    norm: str
    qkv: Callable[..., Projected]
    classes: Mapping[str, tuple[str, ...]]


@dataclass(eq=False)
class Trim:
    """How to compute only the prefix tokens in the last block, for heads that read no other token.

    This is what ``apply_patch(trim_last=True)`` needs.

    Args:
        of: the ``Spec.attend`` that this belongs to; a spec with another ``attend`` loses its trimmed form.
        attend: ``(host, block, x, bias, block_kwargs, rows) -> (B, rows, C)``: the output of ``of`` for the
            first ``rows`` tokens, to rounding, with their skip connection. Keys and values are those of all
            tokens of ``x``. If the function returns a tuple, its first element is used; so ``of`` itself
            fits if it accepts ``rows=None``.
        attention: path of the module below the block whose forward ``attend`` replaces.
        classes: names of the classes that this module may have -> the children and parameters that it may
            have.
        towers: names of tower classes in which only prefix tokens are read after the blocks, up to the
            logits. A subclass with methods of its own is refused.
        keys: paths below the block of weights that multiply all tokens -> the share of each that does; for
            the count of multiply-adds.
        around: names of classes around a tower that read only its prefix tokens. Any other module around the
            tower is refused, unless the tower itself is passed to ``apply_patch``.
        within: names of classes between a tower and its list of blocks. Subclasses with methods of their own
            are refused in all three places.
        why_not: ``tower -> reason`` why more than the prefix tokens are read, or None.
        refuse: ``attention -> reason`` why ``attend`` would differ from the attention, or None.
        watched: ``tower -> bool``, called at the start of each forward pass: whether that pass must return
            something that ``attend`` does not compute (attention maps); that pass is not trimmed.
    """

    of: Callable[..., Any]
    attend: Callable[..., Any]
    attention: str
    classes: Mapping[str, tuple[str, ...]]
    towers: tuple[str, ...]
    keys: Mapping[str, float]
    around: tuple[str, ...] = ()
    within: tuple[str, ...] = ()
    why_not: Callable[[Any], str | None] = nothing
    refuse: Callable[[Any], str | None] = nothing
    watched: Callable[[Any], bool] = never


@dataclass(eq=False)
class Spec:
    """One block class and the tower that owns a list of them.

    Classes are given by ``module.QualName``; a name that starts with a dot matches any module path that
    ends with it, for classes that are distributed under several paths. The class itself is accepted too.

    The fields, in this order, describe:

    - the block and its tower: ``family``, ``blocks``, ``towers``, ``children``;
    - the two halves, and which tokens never merge: ``attend``, ``feed``, ``prefix``;
    - the keys that match tokens, and whether attention counts their sizes: ``key``, ``key_heads``, ``heads``,
      ``prop_attn``;
    - what the block accepts and returns: ``arguments``, ``accepts``, ``mask``, ``real_tokens``,
      ``returns_tuple``;
    - the positions of tokens: ``carry``, ``batch_first``, ``patches``;
    - what reads the tokens: ``dense``, ``tower_mixin``, ``why_restore``, ``readers``;
    - attention with a few queries: ``anatomy``, ``trim``;
    - the checks: ``tensors``, ``bypasses``, ``bypasses_biased``, ``hooked``, ``replacers``, ``refuse``,
      ``refused``;
    - the text for users: ``notes``.

    Args:
        family: the name in messages and in the support table.
        blocks: names of the block classes whose forward is known. A subclass matches if it
            inherits that forward unchanged.
        towers: names of the classes that own the list of blocks, subclasses included -> dotted path
            of that list below them.
        children: every child that a block may have -> names of the classes allowed there, ``("*",)`` for
            any. A block with a child that is not listed is refused.
        attend: ``(host, block, x, bias, block_kwargs) -> x``, the attention half with the skip
            connection, or ``-> (x, key)`` if ``key`` is "". ``bias`` is (B, 1, 1, n) in the dtype of x, to
            be added to the attention scores, or None. ``block_kwargs`` holds the block's other arguments by
            name, without those that are None; they describe the merged tokens already.
        feed: ``(block, x) -> x``, the MLP half with its skip connection. None if the halves cannot be
            separated (parallel blocks): ``attend`` is the whole block, and tokens merge after it.
        prefix: ``tower -> int``, the number of prefix tokens, which never merge.
        key: path of the module below the block whose output is the key, (B, H, N, D) or (B, N, C);
            a ``*`` in it means every child there, and several keys are averaged. "" if ``attend`` returns
            the key.
        key_heads: axis of the heads in a key with four axes.
        heads: ``block -> int``, the number of heads side by side in a key with three axes; None: one.
        prop_attn: ``tower -> bool``, the default of proportional attention.
        arguments: names of the parameters of the block's forward after x, in order.
        accepts: keyword arguments of the block's forward that may be passed while tokens are merged,
            with the only value that each may have.
        mask: the argument that marks padding tokens; "" if there is none.
        real_tokens: ``mask -> (B or 1, N) bool``, False for padding; raises UnsupportedModelError for a
            mask that means something else. It is called once in each forward pass that merges. After that,
            padding has size 0, and ``block_kwargs`` no longer holds the mask.
        returns_tuple: whether the block's forward returns ``(x,)``. It may append other outputs only
            if r = 0; the tower passes the first element to the next block.
        carry: ``(host, block, block_kwargs, state) -> block_kwargs`` for the merged tokens, in
            each block that merges or comes after a merge; None: no argument describes tokens.
        batch_first: ``tower -> bool``, whether tokens are (B, N, C) and not (N, B, C); None: always.
        patches: path below the tower of the module whose output is one token for each patch, (B, N, C),
            (B, C, H, W) or (B, H, W, C); "" if no module computes that. Tokens beyond these and the
            prefix tokens are unknown to tomecore, see ``apply_patch(protected=)``.
        dense: ``tower -> bool``, called at the start of each forward pass: whether
            the pass must return all tokens of every layer.
        tower_mixin: a class that wraps those methods of the tower that need all tokens of every
            layer; used for towers that have these methods.
        why_restore: ``tower -> reason`` why ``restore=False`` would give wrong results, or None.
        readers: names of classes around the tower that pool its tokens or lay them out -> why
            ``restore=False`` would give wrong results there.
        anatomy: queries, keys and values of the block's attention; None: the attention of the class token
            is not available.
        trim: how to compute only the prefix tokens in the last block; None: ``trim_last=True`` is refused.
        tensors: names of parameters and buffers that the block itself may hold.
        bypasses: paths of modules below the block whose forward ``attend`` replaces.
        bypasses_biased: paths of modules whose forward ``attend`` replaces only if there is a bias.
        hooked: ``(host, module) -> bool``, whether a bypassed module has a hook on its forward that must
            run; the library's own hooks may be inactive there.
        replacers: parts of names of modules that replace the forward of the block class by another known
            one.
        refuse: ``block -> reason`` to refuse a block for something that the other fields cannot express, or
            None.
        refused: names of the library's classes that merging would break -> why; used only in the message
            when no tower is found.
        notes: what users of these models should know, for the table of supported models.
    """

    # The block and its tower
    family: str
    blocks: tuple[str, ...]
    towers: Mapping[str, str]
    children: Mapping[str, tuple[str, ...]]
    # The halves, and the tokens that never merge
    attend: Callable[..., Any]
    feed: Callable[[Any, Tokens], Tokens] | None
    prefix: Callable[[Any], int]
    # The keys, and whether attention counts sizes
    key: str = ""
    key_heads: int = 1
    heads: Callable[[Any], int] | None = None
    prop_attn: Callable[[Any], bool] = not_mae
    _: KW_ONLY
    # Arguments of the block, and what it returns
    arguments: tuple[str, ...] = ()
    accepts: Mapping[str, Any] = field(default_factory=dict)
    mask: str = ""
    real_tokens: Callable[[Array], Mask] = nothing
    returns_tuple: bool = False
    # Tokens and their positions
    carry: Callable[[Any, Any, Kwargs, TokenState], Kwargs] | None = None
    batch_first: Callable[[Any], bool] | None = None
    patches: str = ""
    # What reads the tower
    dense: Callable[[Any], bool] = never
    tower_mixin: type | None = None
    why_restore: Callable[[Any], str | None] = nothing
    readers: Mapping[str, str] = field(default_factory=dict)
    # Attention of a few queries
    anatomy: Anatomy | None = None
    trim: Trim | None = None
    # Checks
    tensors: tuple[str, ...] = ()
    bypasses: tuple[str, ...] = ()
    bypasses_biased: tuple[str, ...] = ()
    hooked: Callable[[Any, Any], bool] = has_hooks
    replacers: tuple[str, ...] = ()
    refuse: Callable[[Any], str | None] = nothing
    refused: Mapping[str, str] = field(default_factory=dict)
    # For the support table
    notes: str = ""

    def __post_init__(self) -> None:
        if self.trim is not None and self.trim.of is not self.attend:
            self.trim = None  # it belongs to the spec that this one was copied from
        if self.anatomy is not None and self.anatomy.of is not self.attend:
            self.anatomy = None
        self.blocks = tuple(map(as_name, self.blocks))
        self.towers = {as_name(tower): path for tower, path in self.towers.items()}
        self.children = {
            child: tuple(map(as_name, classes)) for child, classes in self.children.items()
        }

    @property
    def attention(self) -> str:
        """Path of the module that ``attend`` calls with the bias; "" if that is the block itself."""
        return self.key.rpartition(".")[0]

    def is_block(self, module: Any) -> bool:
        """Whether the forward of ``module`` is one that the halves reproduce."""
        return matches(defines_forward(original_class(module)), self.blocks)

    def mixins_of(self, tower: Any) -> tuple[type, ...]:
        """Return the mixin, if the tower has the methods that it wraps."""
        mixin, cls = self.tower_mixin, original_class(tower)
        names = [] if mixin is None else [name for name in vars(mixin) if name[0] != "_"]
        return (mixin,) if mixin is not None and all(hasattr(cls, name) for name in names) else ()

    def is_tower(self, module: Any) -> bool:
        """Whether ``module`` owns a list of blocks of this family."""
        return self.layers(module) is not None

    def layers(self, tower: Any) -> str | None:
        """Return the path of the list of blocks below ``tower``; None if it is not a tower of this family."""
        for cls in original_class(tower).__mro__:
            for name, path in self.towers.items():
                if matches(cls, (name,)) and reaches(tower, path):
                    return path
        return None

    def block_list(self, tower: Any) -> list[Any]:
        """Return the blocks of ``tower``, in order."""
        return list(attribute(tower, self.layers(tower) or ""))

    listed = block_list  # its name before


def attribute(module: Any, path: str) -> Any:
    """Return the attribute at a dotted path."""
    for name in path.split(".") if path else ():
        module = getattr(module, name)
    return module


def reaches(module: Any, path: str) -> bool:
    """Whether a dotted path exists; other versions of a library may have other paths."""
    try:
        attributes(module, path)
    except AttributeError:
        return False
    return True


def attributes(module: Any, path: str) -> list[Any]:
    """Return the attributes at a dotted path in which ``*`` stands for every child."""
    before, star, after = path.partition("*")
    if not star:
        return [attribute(module, path)]
    children = attribute(module, before.strip("."))
    return [found for child in children for found in attributes(child, after.strip("."))]


def as_name(cls: str | type) -> str:
    return cls if isinstance(cls, str) else qualified_name(cls)


def qualified_name(cls: type) -> str:
    """Return the name of ``cls`` with its module."""
    return f"{cls.__module__}.{cls.__qualname__}"


def matches(cls: type, names: tuple[str, ...]) -> bool:
    name = qualified_name(cls)
    return any(
        one == "*" or one == name or (one.startswith(".") and f".{name}".endswith(one))
        for one in names
    )


def defines_forward(cls: type) -> type:
    """Return the class in the ancestry of ``cls`` whose ``forward`` would run.

    A base class may wrap the forward of every subclass, even of one that inherits it (transformers does so
    for checkpointing). A wrapper around the inherited forward does not count as another forward.
    """
    representatives = [c for c in cls.__mro__ if "forward" in vars(c)]
    for owner, inherited in itertools.pairwise(representatives):
        wrapped = getattr(vars(owner)["forward"], "__wrapped__", None)
        if wrapped is None or wrapped is not vars(inherited)["forward"]:
            return owner
    return representatives[-1] if representatives else cls


def has_own_forward(module: Any) -> bool:
    """Whether the instance has a forward other than its class's; a stored copy of that does not count."""
    own = module.__dict__.get("forward")
    if own is None:
        return False
    function = getattr(own, "__func__", None)
    if str(getattr(function, "__module__", "")).startswith("tomecore.adapters."):
        return False  # left by a removed patch: it calls the class's own
    return getattr(own, "__self__", None) is not module or function not in [
        vars(cls).get("forward") for cls in type(module).__mro__
    ]


def replaced_forward(cls: type, known: tuple[str, ...] = ()) -> str | None:
    """Return the name of the function that replaced the forward of ``cls``; None if it was not replaced.

    Args:
        cls: a class of modules.
        known: parts of names of modules whose forwards are known too.
    """
    owner = defines_forward(cls)
    forward = inspect.unwrap(vars(owner).get("forward", object))
    module = str(getattr(forward, "__module__", None))
    if not isinstance(forward, types.FunctionType) or module == owner.__module__:
        return None
    if (
        forward.__qualname__ == f"{owner.__qualname__}.forward"
    ):  # the class goes by another module's name
        return None
    if module.partition(".")[0] == owner.__module__.partition(".")[0] or any(
        k in module for k in known
    ):
        return None
    return f"{module}.{forward.__qualname__}"


def helper_methods(cls: type, base: type) -> tuple[str, ...]:
    """Return the names of the other methods of the class that defines the forward of ``cls``.

    Methods that ``base``, the framework's module, has too do not count: they do not belong to a forward.
    """
    owner, found = defines_forward(cls), []
    for parent in owner.__mro__:
        if parent in base.__mro__:
            continue
        for name, value in vars(parent).items():
            if isinstance(value, types.FunctionType) and not hasattr(base, name):
                found.append(name)
    return tuple(dict.fromkeys(found))
