"""Load models from a function of the user: ``module:function`` or ``file.py:function``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from tomecore.errors import ArgumentValueError
from tomecore.frameworks import framework_of, named_modules
from tomecore.loading._loaded import Loaded, near
from tomecore.loading.images import Preprocess, channels_of, named_size

__all__ = ["function_model", "function_of"]


def function_of(name: str, libraries: Sequence[str] = ()) -> Callable[..., Any]:
    """Return the function that ``module:function`` or ``file.py:function`` names.

    Args:
        name: the text.
        libraries: words that may stand in place of the module, for the message.

    Raises:
        ArgumentValueError: there is no such file, module or function.
    """
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
        if not where:
            raise ArgumentValueError(f"{name!r} must be module:function or file.py:function")
        if "" not in sys.path:
            sys.path.insert(0, "")
        try:
            module = importlib.import_module(where)
        except ModuleNotFoundError as error:
            similar = " or ".join(f"{one}:{function}" for one in near(where, libraries))
            hint = f"; did you mean {similar}?" if similar else ""
            other = ", and no library of models has that name" if libraries else ""
            raise ArgumentValueError(
                f"{name!r}: there is no module {error.name!r}{other}{hint}"
            ) from error
    found = getattr(module, function, None)
    if not callable(found):
        raise ArgumentValueError(f"{where} has no function {function!r}")
    chosen: Callable[..., Any] = found
    return chosen


def function_model(
    name: str, pretrained: bool, resolution: int | None, libraries: Sequence[str] = ()
) -> Loaded:
    """Return the model that a function of the user returns, with its preprocessing, or a usual one."""
    made = function_of(name, libraries)()
    model, preprocess = made if isinstance(made, tuple) else (made, None)
    framework_of(model)
    if preprocess is None:
        modules = [module for _, module in named_modules(model)]
        size = named_size(modules) or (224, 224)
        size = (resolution, resolution) if resolution else size
        grey = channels_of(modules) == 1
        preprocess = Preprocess(size, (0.5,), (0.5,)) if grey else Preprocess(size)
    return Loaded(name, model, preprocess)
