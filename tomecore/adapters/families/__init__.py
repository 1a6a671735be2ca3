"""Model families: one small file per library, none of which imports it or its framework.

A file says which framework it is for (``FRAMEWORK``) and what it knows (``SPECS``); being here is all it
takes. Names with an underscore are what families share.
"""

from __future__ import annotations

import importlib
import pkgutil

from tomecore.adapters._spec import Spec

__all__ = ["known"]


def known(framework: str) -> tuple[Spec, ...]:
    """The specs of every family of a framework."""
    names = [info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_")]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in sorted(names)]
    return tuple(spec for m in modules if framework == m.FRAMEWORK for spec in m.SPECS)
