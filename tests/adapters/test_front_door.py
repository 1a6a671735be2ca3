"""``tomecore.apply_patch``: it finds the framework of a model; a framework that is missing is named."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tomecore
from adapters.cases import OWN, Case
from tomecore.errors import ArgumentTypeError, ArgumentValueError

PLAIN = [case for case in OWN if case.name in ("torch-plain", "paddle-plain")]


@pytest.mark.parametrize("plain", PLAIN, ids=lambda plain: plain.name)
def test_a_model_of_each_framework(plain: Case) -> None:
    model = plain.model()
    kind, adapter = type(model), plain.fw.tome
    assert tomecore.apply_patch(model, r=3, matching="kth") is model
    assert (model.r, model.tome.matching) == (3, "kth")
    assert adapter.handle(model).protected == tomecore.adapters.handle_of(model).protected
    assert tomecore.remove_patch(model) is model
    assert type(model) is kind
    with pytest.raises(ArgumentValueError, match="`r`"):
        tomecore.apply_patch(model, r=-1)


@pytest.mark.parametrize("thing", [np.ones(3), None, "vit_base_patch16_224"], ids=repr)
def test_what_is_no_model_is_refused(thing: Any) -> None:
    for function in (tomecore.apply_patch, tomecore.remove_patch):
        with pytest.raises(
            ArgumentTypeError, match=r"must be a torch.nn.Module or a paddle.nn.Laye"
        ):
            function(thing)


@pytest.mark.parametrize("framework", ["torch", "paddle"])
def test_a_missing_framework_is_an_import_error_with_the_command(framework: str) -> None:
    code = f"import sys; sys.modules['{framework}'] = None\n"
    code += f"try:\n    import tomecore.adapters.{framework}\nexcept ImportError as error:\n    print(error)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.startswith(f"{framework} is not installed; install it with: pip install")


if TYPE_CHECKING:  # `make typecheck` reads these lines; nothing runs them
    from typing_extensions import assert_type

    from tomecore.adapters import Handle
    from tomecore.models.torch import VisionTransformer
    from tomecore.schedule import R

    def typed_code(model: VisionTransformer) -> None:
        """A patched model keeps its type, and its handle has a typed r."""
        assert_type(tomecore.apply_patch(model, r=8), VisionTransformer)
        assert_type(tomecore.remove_patch(model), VisionTransformer)
        assert_type(tomecore.adapters.torch.apply_patch(model), VisionTransformer)
        handle = tomecore.adapters.handle_of(model)
        assert_type(handle, Handle)
        assert_type(handle.r, R)
        handle.r = 16
