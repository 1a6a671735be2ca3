"""Find, check, swap, restore. Everything is checked before anything is changed."""

from __future__ import annotations

from typing import Any

from tomecore.adapters._block import Merging
from tomecore.adapters._config import Config
from tomecore.adapters._find import find_tower
from tomecore.adapters._handle import Handle
from tomecore.adapters._host import Host, PropAttn
from tomecore.adapters._reduce import merge_tokens
from tomecore.adapters._spec import Spec, attributes, matches
from tomecore.adapters._swap import Swapped, original_class, swap, unswap
from tomecore.adapters._trim import class_trimmed, why_not_trimmed
from tomecore.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    NotPatchedError,
    UnsupportedModelError,
)
from tomecore.schedule import R, parse_r

__all__ = ["Root", "handle", "patch", "register", "unpatch"]


class Root(Swapped):
    """Mixin of the model that was given to ``apply_patch``: adds ``r`` and ``tome``."""

    _tome: Config

    @property
    def r(self) -> R:
        """Tokens merged per layer: int | (r, inflect) | list | schedule object."""
        return self._tome.r

    @r.setter
    def r(self, value: R) -> None:
        self.tome.r = value

    @property
    def tome(self) -> Handle:
        """Settings and results of the patch."""
        return Handle(self._tome, self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "r":  # also a schedule object that is a module, which must not become a child
            self.tome.r = value
        else:
            super().__setattr__(name, value)


def patch(
    host: Host,
    specs: tuple[Spec, ...],
    model: Any,
    *,
    r: R | None,
    prop_attn: PropAttn | None,
    trace_source: bool,
    restore: bool,
    trim_last: bool,
) -> Any:
    """Patch ``model`` in place; see ``apply_patch`` of the adapters."""
    check_prop_attn(host, prop_attn)
    for value, name in (
        (trace_source, "trace_source"),
        (restore, "restore"),
        (trim_last, "trim_last"),
    ):
        if not isinstance(value, bool):
            raise ArgumentTypeError(f"`{name}` must be True or False; got {value!r}")
    check_model(host, model)
    old = config_of(model)
    if old is not None:
        check_unchanged(old, model)
    spec, tower, blocks = find_tower(host, specs, model)
    for path, module in host.named_modules(model):
        other = vars(module).get("_tome")
        if other is not None and other is not old:
            raise UnsupportedModelError(
                f"`model` contains {path!r}, which is already patched by itself. Use that module's r, "
                f"or call remove_patch(model.{path}) first."
            )
    reason = None if restore else spec.why_restore(tower) or why_read(host, spec, model)
    if reason:
        raise UnsupportedModelError(
            f"restore=False would give wrong results: {reason}. Use restore=True."
        )
    if trim_last:
        reason = why_read(host, spec, model)
        reason = reason or why_not_trimmed(host, spec, model, tower, blocks[-1])
        if reason:
            raise UnsupportedModelError(
                f"trim_last=True cannot be had for this {original_class(model).__name__} "
                f"({spec.family}): {reason}. Leave trim_last=False, which is right for every model."
            )
    if old is None:
        for name in ("r", "tome"):
            if hasattr(model, name):
                raise UnsupportedModelError(
                    f"`model` ({type(model).__name__}) has an attribute {name!r} of its own, which the "
                    "patch would hide; patch the vision model inside it instead"
                )
    wanted = r if r is not None else (old.r if old is not None else 0)
    if not callable(wanted):
        parse_r(len(blocks), wanted)

    config = Config(host, spec, tower, blocks, merge_tokens)
    config.r = wanted
    config.prop_attn = spec.prop_attn(tower) if prop_attn is None else prop_attn
    config.trace_source, config.restore = trace_source, restore
    if trim_last:
        config.trim_last, config.trimmed_class = True, class_trimmed(spec, blocks[-1])
    if old is not None:  # but not released: a program that to_static made of the model stays one
        undo(old, model)
    for index, block in enumerate(blocks):
        vars(block)["_tome"] = config
        vars(block)["_tome_first"] = index == 0
        swap(block, Merging)
        if spec.key:
            config.handles += [host.tap(module) for module in attributes(block, spec.key)]
    mixins = spec.mixins_of(tower)
    for module, added in ((tower, mixins), (model, (Root, *(mixins if tower is model else ())))):
        if added:
            vars(module)["_tome"] = config
            swap(module, *added)
    host.changed(model)
    return model


def check_prop_attn(host: Host, prop_attn: Any) -> None:
    """Raise unless proportional attention is on, off, left to the family or a form of this framework."""
    if prop_attn is None or isinstance(prop_attn, bool) or prop_attn in host.forms:
        return
    named = "".join(f" or {form!r}" for form in host.forms)
    message = f"`prop_attn` must be True, False{named}, or None for the family's default; got {prop_attn!r}"
    if not isinstance(prop_attn, str):
        raise ArgumentTypeError(message)
    if not host.forms:
        message += ". Forms have names in PyTorch; in this framework True takes the fastest one"
    raise ArgumentValueError(message)


def why_read(host: Host, spec: Spec, model: Any) -> str | None:
    """Why something around the tower needs all tokens, or None."""
    for _, module in host.named_modules(model):
        for cls in original_class(module).__mro__:
            for name, reason in spec.readers.items():
                if matches(cls, (name,)):
                    return f"{cls.__qualname__} {reason}"
    return None


def register(host: Host, spec: Spec) -> None:
    """See ``register`` of the adapters."""
    if not isinstance(spec, Spec):
        raise ArgumentTypeError(
            f"`spec` must be a tomecore.adapters.Spec; got {type(spec).__module__}."
            f"{type(spec).__qualname__}"
        )
    others = [known for known in host.registered if known.family != spec.family]
    host.registered[:] = [spec, *others]


def unpatch(host: Host, model: Any) -> Any:
    """Undo :func:`patch`; returns the model."""
    config = config_of(model)
    if config is None:
        raise not_patched(host, model)
    check_unchanged(config, model)
    undo(config, model)
    for module in (model, config.tower, *config.blocks):  # what a graph left, the outermost first
        host.released(module)
    return model


def undo(config: Config, model: Any) -> None:
    """Take hooks, classes and attributes off again."""
    for hook in config.handles:
        hook.remove()
    for module in (*config.blocks, config.tower, model):
        unswap(module)
        vars(module).pop("_tome", None)
        vars(module).pop("_tome_first", None)


def handle(host: Host, model: Any) -> Handle:
    """``model.tome``, or NotPatchedError."""
    config = config_of(model)
    if config is None:
        raise not_patched(host, model)
    return Handle(config, model)


def config_of(model: Any) -> Config | None:
    return vars(model).get("_tome") if isinstance(model, Root) else None


def not_patched(host: Host, model: Any) -> NotPatchedError:
    found = f"this {type(model).__name__} is not patched"
    if isinstance(model, host.module_class):
        for path, module in host.named_modules(model):
            if config_of(module) is not None:
                return NotPatchedError(f"{found}, but model.{path} is: use that")
    return NotPatchedError(f"{found}; call apply_patch(model) first")


def check_model(host: Host, model: Any) -> None:
    """Raise for what is no model, or only wraps one."""
    if not isinstance(model, host.module_class):
        raise ArgumentTypeError(
            f"`model` must be a {host.module_class.__module__}.{host.module_class.__qualname__}; "
            f"got {type(model).__module__}.{type(model).__qualname__}"
        )
    for cls in type(model).__mro__:
        inner = host.wrappers.get(cls.__qualname__)
        if (
            inner is not None
            and cls.__module__.partition(".")[0] == host.module_class.__module__.partition(".")[0]
        ):
            raise UnsupportedModelError(
                f"`model` is wrapped in {cls.__qualname__}: setting r on the wrapper would leave the "
                f"model inside unchanged. Call apply_patch(model.{inner}), then set model.{inner}.r, "
                "or patch before wrapping."
            )


def check_unchanged(config: Config, model: Any) -> None:
    """Raise if something else changed the class of a patched module since."""
    swapped = [*config.blocks, model]
    if config.spec.mixins_of(config.tower):
        swapped.append(config.tower)
    for module in swapped:
        if "_tome_original" not in vars(type(module)):
            raise UnsupportedModelError(
                f"the class of a patched {original_class(module).__name__} was changed after "
                "apply_patch (FSDP2 and torch.nn.utils.parametrize do that); undo that first, or "
                "patch a fresh copy of the model"
            )
