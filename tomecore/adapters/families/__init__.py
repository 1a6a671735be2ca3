"""Model families: one small file per library, none of which imports it or its framework.

A file says which framework it is for (``FRAMEWORK``) and what it knows (``SPECS``); being here, or in the
folder of its library, is all it takes. Files without these names are what families share.
"""

from __future__ import annotations

import importlib
import pkgutil

from tomecore.adapters.engine.spec import Spec

__all__ = ["known"]


def known(framework: str) -> tuple[Spec, ...]:
    """The specs of every family of a framework, in the order of their files."""
    names = [info.name for info in pkgutil.walk_packages(__path__, f"{__name__}.")]
    names.sort(key=lambda name: name.removesuffix("vit"))  # the plain ViT first: messages name it
    modules = [importlib.import_module(name) for name in names]
    return tuple(
        spec
        for module in modules
        if getattr(module, "FRAMEWORK", None) == framework
        for spec in module.SPECS
    )
