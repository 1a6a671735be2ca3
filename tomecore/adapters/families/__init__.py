"""Model families: one small file per library, none of which imports it or its framework.

A file names its framework (``FRAMEWORK``) and lists its specs (``SPECS``). It is found if it is in this
folder or in the folder of its library. Files without these names hold code that families share.
"""

from __future__ import annotations

import importlib
import pkgutil

from tomecore.adapters.engine.spec import Spec

__all__ = ["specs_of"]


def specs_of(framework: str) -> tuple[Spec, ...]:
    """Return the specs of every family of a framework, in the order of their files."""
    names = [info.name for info in pkgutil.walk_packages(__path__, f"{__name__}.")]
    names.sort(key=lambda name: name.removesuffix("vit"))  # the plain ViT first: messages name it
    modules = [importlib.import_module(name) for name in names]
    return tuple(
        spec
        for module in modules
        if getattr(module, "FRAMEWORK", None) == framework
        for spec in module.SPECS
    )
