"""Patch a model and undo it: find the tower, check everything, then swap classes."""

from __future__ import annotations

import functools
import weakref
from typing import Any

from tomecore.adapters.engine.block import Merging
from tomecore.adapters.engine.calls import Watched
from tomecore.adapters.engine.checks import note_contract
from tomecore.adapters.engine.config import TOME, Config
from tomecore.adapters.engine.find import find_tower
from tomecore.adapters.engine.handle import Handle
from tomecore.adapters.engine.host import Host, PropAttn, check_prop_attn
from tomecore.adapters.engine.method import Method, check_needs
from tomecore.adapters.engine.prefix import note_embedding, patch_embedding
from tomecore.adapters.engine.reduce import merge_tokens
from tomecore.adapters.engine.spec import Spec, attribute, attributes, matches
from tomecore.adapters.engine.swap import make_swapped_class, original_class, swap, unswap
from tomecore.adapters.engine.trim import why_not_trimmed
from tomecore.core.checks import whole_number
from tomecore.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    NotPatchedError,
    UnsupportedModelError,
)
from tomecore.matching import Matching
from tomecore.schedule import R, parse_r

__all__ = ["Root", "config_of", "handle", "handle_of", "is_patched", "patch", "register", "unpatch"]


class Root(Watched):
    """Mixin of the patched model that adds ``r`` and ``tome``."""

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
        if name == "r":  # even if the schedule object is a module, which must not become a child
            self.tome.r = value
        else:
            super().__setattr__(name, value)


def patch(
    host: Host,
    specs: tuple[Spec, ...],
    model: Any,
    *,
    r: R | None,
    matching: str | Matching | None,
    protected: int | str | None,
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
    announced = check_protected(protected)
    method = None if matching is None else Method(matching)
    old = owner(host, model)
    if old is not None:
        check_unchanged(old, model)
    spec, tower, blocks = find_tower(host, specs, model)
    keep = protected is None and old is not None
    announced = old.announced if keep else announced  # type: ignore[union-attr]
    known = spec.prefix(tower)
    if announced is not None and announced < known:
        raise ArgumentValueError(
            f"`protected` must be at least {known}, the number of prefix tokens of {spec.family} (class, "
            f"distillation and register tokens); got {announced}. Include them in the number, or pass 'auto'."
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
                f"trim_last=True is not supported for this {original_class(model).__name__} "
                f"({spec.family}): {reason}. Use trim_last=False, which is correct for every model."
            )
    method = method or (TOME if old is None else old.method)
    check_needs(method, host, spec, tower, blocks)
    if config_of(model) is None:
        for name in ("r", "tome"):
            if hasattr(model, name):
                raise UnsupportedModelError(
                    f"`model` ({type(model).__name__}) has its own attribute {name!r}, which the patch would "
                    "hide; call apply_patch on the vision model inside it instead"
                )
    wanted = r if r is not None else (old.r if old is not None else 0)
    if not callable(wanted):
        parse_r(len(blocks), wanted)

    config = Config(host, spec, model, tower, blocks, merge_tokens)
    config.r = wanted
    config.announced = announced
    config.method = method
    config.prop_attn = spec.prop_attn(tower) if prop_attn is None else prop_attn
    config.trace_source, config.restore, config.trim_last = trace_source, restore, trim_last
    note_contract(config)
    Handle(config, model).check_schedule(wanted)
    check_classes(config, model)
    if old is not None:  # without host.forget: a model converted by to_static stays converted
        undo(old, model)
    install(config, model)
    host.drop_traces(model)
    return model


def check_classes(config: Config, model: Any) -> None:
    """Create the classes that :func:`install` needs, before anything is changed.

    Raises:
        UnsupportedModelError: a class does not allow subclasses.
    """
    mixins = config.spec.mixins_of(config.tower)
    wanted: list[tuple[Any, tuple[type, ...]]] = [(block, (Merging,)) for block in config.blocks]
    wanted += [(module, (Watched,)) for module in modules_between(config, config.tower)]
    if config.tower is not model:
        wanted.append((config.tower, (Watched, *mixins)))
    wanted.append((model, (Root, *(mixins if config.tower is model else ()))))
    for module, added in wanted:
        original = original_class(module)
        try:
            make_swapped_class(original, added)
        except Exception as error:  # a metaclass may raise anything
            raise UnsupportedModelError(
                f"{original.__qualname__} does not allow subclasses, which patching needs "
                f"({type(error).__name__}: {error}); the model is unchanged"
            ) from error


def install(config: Config, model: Any) -> None:
    """Swap the classes of the blocks, the tower and the model, and register tomecore's hooks."""
    host, spec, tower, blocks = config.host, config.spec, config.tower, config.blocks
    captured: set[int] = set()
    for index, block in enumerate(blocks):
        place = vars(block)
        place.update(_tome=config, _tome_index=index)
        place.update(_tome_first=index == 0, _tome_last=index == len(blocks) - 1)
        swap(block, Merging)
        for module in attributes(block, spec.key) if spec.key else ():
            if id(module) not in captured:  # blocks may share a module
                captured.add(id(module))
                host.register_key_hook(module)
                config.modules.listening.append(weakref.ref(module))
    mixins = spec.mixins_of(tower)
    vars(tower).update(_tome=config, _tome_tower=True)
    vars(model).update(_tome=config, _tome_root=True)
    for module in modules_between(config, tower):
        if module is not model:
            vars(module).update(_tome=config)
            swap(module, Watched)
            config.modules.between.append(weakref.ref(module))
    if tower is not model:
        swap(tower, Watched, *mixins)
    swap(model, Root, *(mixins if tower is model else ()))
    embedding = patch_embedding(config)
    if embedding is not None:
        host.watch_output(embedding, functools.partial(note_embedding, config))
        config.modules.listening.append(weakref.ref(embedding))


def modules_between(config: Config, tower: Any) -> list[Any]:
    """Return the modules between the tower and its list of blocks, which may be called by themselves."""
    names = config.layers.split(".")[:-1]
    return [attribute(tower, ".".join(names[: depth + 1])) for depth in range(len(names))]


def check_protected(protected: int | str | None) -> int | None:
    """Return the number of prefix tokens that the user passed; None: as many as the family knows."""
    if protected is None or (isinstance(protected, str) and protected == "auto"):
        return None
    if isinstance(protected, str):
        raise ArgumentValueError(
            f"`protected` must be a number of tokens, 'auto' or None; got {protected!r}"
        )
    return whole_number(protected, "protected", unit="prefix tokens, which never merge")


def why_read(host: Host, spec: Spec, model: Any) -> str | None:
    """Return the reason why a module around the tower needs all tokens; None if there is none."""
    for _, module in host.named_modules(model):
        for cls in original_class(module).__mro__:
            for name, reason in spec.readers.items():
                if matches(cls, (name,)):
                    return f"{cls.__qualname__} {reason}"
    return None


def register(host: Host, spec: Spec) -> None:
    """Register ``spec`` with the host; see ``register`` of the adapters."""
    if not isinstance(spec, Spec):
        raise ArgumentTypeError(
            f"`spec` must be a tomecore.adapters.Spec; got {type(spec).__module__}."
            f"{type(spec).__qualname__}"
        )
    others = [known for known in host.registered if known.family != spec.family]
    host.registered[:] = [spec, *others]


def unpatch(host: Host, model: Any) -> Any:
    """Undo :func:`patch`, and return the model."""
    holds = config_of(model) is None and any(
        config_of(module) is not None and module is config.root
        for module, config in patched_modules(host, model)
    )
    config = None if holds else owner(host, model)
    if config is None:
        raise not_patched_error(host, model)
    check_unchanged(config, model)
    modules = undo(config, model)
    for module in modules:  # outermost first, because its graph contains the others
        host.forget(module)
    return model


def undo(config: Config, model: Any) -> list[Any]:
    """Remove hooks, swapped classes and attributes; returns the modules, outermost first."""
    modules = [module for module, found in patched_modules(config.host, model) if found is config]
    between = [reference() for reference in config.modules.between]
    modules += [m for m in (config.root, config.tower, *between, *config.blocks) if m is not None]
    modules = list({id(module): module for module in modules}.values())
    for outer in (model, *modules):
        for _, module in config.host.named_modules(outer):
            config.host.unhook(module)
    for reference in config.modules.listening:  # modules that were replaced after the patch
        module = reference()
        if module is not None:
            config.host.unhook(module)
    for module in modules:
        unswap(module)
        for name in [name for name in vars(module) if name.startswith("_tome")]:
            del vars(module)[name]
    return modules


def patched_modules(host: Host, model: Any) -> list[tuple[Any, Config]]:
    """Return the patched modules in ``model``, itself included, each with its config."""
    found = []
    for _, module in host.named_modules(model):
        config = vars(module).get("_tome")
        if config is not None:
            found.append((module, config))
    return found


def owner(host: Host, model: Any) -> Config | None:
    """Return the config of a patched model, or of a patched part whose model was freed; else None.

    Raises:
        UnsupportedModelError: ``model`` is part of a patched model, or contains one.
    """
    config = config_of(model)
    paths = {id(module): path for path, module in host.named_modules(model)}
    for module, other in patched_modules(host, model):
        if other is config:
            continue
        root, path = other.root, paths[id(module)]
        if (
            root is not None
            and id(root) in paths
            and root is not model
            and config_of(root) is other
        ):
            raise UnsupportedModelError(
                f"`model` contains {paths[id(root)]!r}, which is already patched by itself. Use that "
                f"module's r, or call remove_patch(model.{paths[id(root)]}) first."
            )
        if root is not None and any(part is module for _, part in host.named_modules(root)):
            what = f"model.{path}" if path else "`model`"
            raise UnsupportedModelError(
                f"{what} ({type(module).__name__}) is part of a {type(root).__name__} that was patched as a "
                f"whole. Set r on that {type(root).__name__}, or call remove_patch on it first."
            )
        if config is not None:
            raise UnsupportedModelError(
                f"`model` contains {path!r} ({type(module).__name__}), which was patched in another model; "
                f"call remove_patch(model.{path}) first"
            )
    if config is not None:
        return config
    others = {id(other): other for _, other in patched_modules(host, model)}
    if len(others) > 1:
        raise UnsupportedModelError(
            "`model` contains parts of several patched models; call remove_patch on each of them first"
        )
    return next(iter(others.values()), None)


def handle(host: Host, model: Any) -> Handle:
    """Return ``model.tome``.

    Raises:
        NotPatchedError: the model is not patched.
    """
    config = config_of(model)
    if config is None:
        raise not_patched_error(host, model)
    return Handle(config, model)


def handle_of(model: Any, name: str = "model") -> Handle:
    """Return ``model.tome`` of a patched model of any framework.

    Args:
        model: the model that ``apply_patch`` was called with.
        name: name of the caller's argument, for the message.

    Raises:
        NotPatchedError: the model is not patched.
    """
    config = config_of(model)
    if config is None:
        raise NotPatchedError(
            f"`{name}` ({type(model).__name__}) is not patched; call apply_patch first"
        )
    return Handle(config, model)


def is_patched(model: Any) -> bool:
    """Whether this model itself, not only a part of it, is patched."""
    return config_of(model) is not None


def config_of(model: Any) -> Config | None:
    """Return the config of a patched model; None for other objects."""
    return vars(model).get("_tome") if isinstance(model, Root) else None


def not_patched_error(host: Host, model: Any) -> NotPatchedError:
    found = f"this {type(model).__name__} is not patched"
    if isinstance(model, host.module_class):
        for path, module in host.named_modules(model):
            if config_of(module) is not None:
                return NotPatchedError(f"{found}, but model.{path} is; use model.{path} instead")
    return NotPatchedError(f"{found}; call apply_patch(model) first")


def check_model(host: Host, model: Any) -> None:
    """Raise if ``model`` is not a module of the framework, or is only a wrapper around a model."""
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
                f"`model` is wrapped in {cls.__qualname__}: setting r on the wrapper would leave the model "
                f"inside unchanged. Call apply_patch(model.{inner}), then set model.{inner}.r, or call "
                "apply_patch before wrapping."
            )


def check_unchanged(config: Config, model: Any) -> None:
    """Raise if other code has changed the class of a patched module."""
    for module, found in patched_modules(config.host, model):
        if found is config and "_tome_original" not in vars(type(module)):
            raise UnsupportedModelError(
                f"the class of a patched {original_class(module).__name__} was changed after apply_patch "
                "(FSDP2 and torch.nn.utils.parametrize do that); undo that first, or call apply_patch on a "
                "new copy of the model"
            )
