"""Load models from a function of the user: ``module:function`` or ``file.py:function``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from tomecore.errors import ArgumentValueError
from tomecore.frameworks import framework_of
from tomecore.loading._loaded import Loaded
from tomecore.loading.images import Preprocess

__all__ = ["function_model"]


def function_model(name: str, pretrained: bool, resolution: int | None) -> Loaded:
    where, _, function = name.rpartition(":")
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise ArgumentValueError(f"there is no file {where} to take {function!r} from")
        loader = SourceFileLoader(path.stem, where)
        spec: Any = importlib.util.spec_from_loader(path.stem, loader)
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # so that its classes can be pickled
        loader.exec_module(module)
    else:
        if "" not in sys.path:
            sys.path.insert(0, "")
        try:
            module = importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise ArgumentValueError(
                f"{name!r}: there is no module {error.name!r}, and no library of models has that name"
            ) from error
    make = getattr(module, function, None)
    if not callable(make):
        raise ArgumentValueError(f"{where} has no function {function!r} that returns a model")
    made = make()
    model, preprocess = made if isinstance(made, tuple) else (made, None)
    framework_of(model)
    if preprocess is None:
        side = resolution or _side(model)
        preprocess = Preprocess((side, side))
    return Loaded(name, model, preprocess)


def _side(model: Any) -> int:
    """Return the pixels on a side of the model's input; 224 if the model does not name them."""
    for owner, attribute in (
        (getattr(model, "patch_embed", None), "img_size"),
        (model, "img_size"),
        (model, "image_size"),
        (getattr(model, "config", None), "image_size"),
    ):
        value = getattr(owner, attribute, None)
        if isinstance(value, tuple | list):
            value = value[0]
        if isinstance(value, int):
            return value
    return 224
