"""Merge tokens in PyTorch models: ``apply_patch(model); model.r = 16``.

    import tomecore.adapters.torch as tome
    model = tome.apply_patch(model)      # in place; returns the model
    model.r = 16                         # int | (r, inflect) | list | schedule object
    logits = model(images)
    tome.remove_patch(model)

The code that is specific to PyTorch is in ``hosts/torch.py``, the mechanism is in ``engine/``, and the model
families are in ``families/``.
"""

from __future__ import annotations

from tomecore.adapters.engine.adapter import Adapter
from tomecore.adapters.families import specs_of
from tomecore.adapters.families.structural import PRE_NORM
from tomecore.frameworks import require

require("torch")

from tomecore.adapters.hosts.torch import HOST  # noqa: E402  (it imports the framework)

__all__ = ["ADAPTER", "HOST", "SPECS", "apply_patch", "handle", "register", "remove_patch"]

ADAPTER = Adapter(__name__, HOST, specs_of("torch"), fallback=PRE_NORM)
#: the model families that this adapter recognises
SPECS = ADAPTER.specs

apply_patch = ADAPTER.apply_patch
remove_patch = ADAPTER.remove_patch
handle = ADAPTER.handle
register = ADAPTER.register
