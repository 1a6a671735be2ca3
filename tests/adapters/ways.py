"""Every way of calling a model that its library offers, found by looking at the model.

A way is the tower or a module around it, one of its methods that takes images, and at most one option of that
method. No list names the models, so a new family is covered automatically. A call that a library does not
support for a model raises before the patch, and is not a way. Modules between a tower and its blocks are
parts of a model: they return the same tree, or say that tokens are merged.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from adapters.frameworks import Framework
from tomecore.errors import LostStateError, UnsupportedModelError

__all__ = ["Way", "check_shapes", "shapes", "ways"]

#: Parameters that take what the module is usually called with.
INPUTS = (
    *("x", "x_list", "image", "images", "img", "imgs", "input", "inputs", "patches"),
    *("pixel_values", "input_values", "inputs_embeds", "hidden_states", "pixels"),
)
#: Options whose default does not show their other values -> these values.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "output_hidden_states": (True,),
    "output_attentions": (True,),
    "return_dict": (False,),
    "n": (3, [0, 2]),
    "indices": (3, [0, 2]),
    "image_indices": ([0, 2],),
    "output_fmt": ("NLC", "NCHW"),
    "image_output_fmt": ("NLC", "NCHW"),
}
#: Of these, what is understood without being named in a signature.
KEYWORDS = ("output_hidden_states", "output_attentions", "return_dict")


#: The one exception: ways that may be refused while tokens merge -> why.
MAY_BE_REFUSED = {
    "output_attentions": "maps of attention are of merged tokens, where the attention gives any",
    "get_last_selfattention": "as above",
    "is_causal": "which tokens come later is not known of merged ones",
}
#: The fields of outputs that describe merged tokens, as the table of models says.
OF_MERGED_TOKENS = ("attentions",)


@dataclass(frozen=True)
class Way:
    """``getattr(module, method)(*args, **kwargs)``, of the module at ``path``."""

    path: str
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    option: dict[str, Any] = field(default_factory=dict)
    part: bool = False

    def __str__(self) -> str:
        option = ", ".join(f"{name}={value!r}" for name, value in self.option.items())
        return f"model{'.' if self.path else ''}{self.path}.{self.method}({option})"

    @property
    def may_be_refused(self) -> bool:
        return bool({self.method, *self.option} & MAY_BE_REFUSED.keys())

    def take(self, fw: Framework, model: Any) -> Any:
        """Return the output, for the same inputs each time."""
        module = fw.modules(model)[self.path]
        method = module if self.method == "__call__" else getattr(module, self.method)
        return method(*self.args, **{**self.kwargs, **self.option})


def check_shapes(
    fw: Framework, model: Any, images: Any, tower: Any, block: Any, **settings: Any
) -> None:
    """Law 12: whichever way ``model`` is called, r=8 gives the tree of output shapes that it has without."""
    before = list(ways(fw, model, images, tower, block))
    assert ("", "__call__", {}) in [(way.path, way.method, way.option) for way, _ in before]
    fw.tome.apply_patch(model, r=8, **settings)
    for way, expected in before:
        got = _outcome(fw, model, way)
        if way.part and isinstance(got, LostStateError):
            continue
        if not (isinstance(got, UnsupportedModelError) and way.may_be_refused):
            assert got == expected, str(way)


def _outcome(fw: Framework, model: Any, way: Way) -> Any:
    """The tree of what comes out, or what is raised."""
    try:
        with (
            warnings.catch_warnings()
        ):  # as an error, one about an option would say that it is not offered
            warnings.simplefilter("ignore")
            return shapes(way.take(fw, model))
    except Exception as error:
        return error


def ways(
    fw: Framework, model: Any, images: Any, tower: Any, block: Any
) -> Iterator[tuple[Way, Any]]:
    """The ways of calling ``model``, which is not patched, that run the block; and the tree of each."""
    for path, (args, kwargs) in _calls(fw, model, images, tower, block).items():
        module = fw.modules(model)[path]
        part = all(inner is not tower for inner in fw.modules(module).values())
        for name in ("__call__", *_methods(module)):
            function = module.forward if name == "__call__" else getattr(module, name)
            parameters = inspect.signature(function).parameters
            takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
            known = {k: v for k, v in kwargs.items() if takes_any or k in parameters}
            for option in _options(parameters, takes_any):
                way = Way(path, name, args, known, option, part)
                ran, tree = _tried(fw, model, way, block)
                if ran and not isinstance(tree, Exception):
                    yield way, tree


def _calls(
    fw: Framework, model: Any, images: Any, tower: Any, block: Any
) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Path of the tower and of each module around it, or around a block -> what a plain call gives it.

    One that is not called by that, but has methods that are, gets the images.
    """
    found: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    hooks, around = [], []
    for path, module in fw.modules(model).items():
        if module is not block and any(inner is block for inner in fw.modules(module).values()):
            around.append(path)

            def note(_: Any, args: Any, kwargs: Any, path: str = path) -> None:
                found.setdefault(path, (tuple(args), dict(kwargs)))

            hooks.append(fw.pre_hook(module, note, with_kwargs=True))
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: found.get(path, ((images,), {})) for path in around}


def _methods(module: Any) -> list[str]:
    """Public methods of the module's own classes that need one argument, images or tokens."""
    found = []
    for name in dir(type(module)):
        function = inspect.getattr_static(type(module), name)
        owner = next(cls for cls in type(module).__mro__ if name in vars(cls))
        foreign = owner.__module__.split(".")[:2] in (["torch", "nn"], ["paddle", "nn"])
        if name.startswith("_") or name == "forward" or foreign or not inspect.isfunction(function):
            continue
        _, *parameters = inspect.signature(function).parameters.values()
        if parameters and parameters[0].name in INPUTS:
            found.append(name)
    return found


def _options(parameters: Any, takes_any: bool) -> Iterator[dict[str, Any]]:
    """No option, then one at a time."""
    yield {}
    for name, parameter in parameters.items():
        if name not in OPTIONS and isinstance(parameter.default, bool):
            yield {name: not parameter.default}
    for name, values in OPTIONS.items():
        if name in parameters or (takes_any and name in KEYWORDS):
            yield from ({name: value} for value in values)


def _tried(fw: Framework, model: Any, way: Way, block: Any) -> tuple[bool, Any]:
    """Whether the block ran, and the outcome: an exception where the library does not offer this way."""
    ran: list[bool] = []
    hook = fw.pre_hook(block, lambda *_: ran.append(True) or None)
    try:
        tree = _outcome(fw, model, way)
        return bool(ran), tree
    finally:
        hook.remove()


def shapes(output: Any, field: str = "") -> Any:
    """The tree of an output: types of containers, keys and fields, shapes and dtypes of arrays."""
    kind = type(output).__name__
    if hasattr(output, "shape") and hasattr(output, "dtype"):
        shape = tuple(output.shape)
        return kind, shape[:-2] if field in OF_MERGED_TOKENS else shape, str(output.dtype)
    if isinstance(output, dict):
        return kind, {key: shapes(value, key) for key, value in output.items()}
    if dataclasses.is_dataclass(output):
        return kind, {key: shapes(value, key) for key, value in vars(output).items()}
    if isinstance(output, list | tuple):
        return kind, [shapes(value, field) for value in output]
    return kind
