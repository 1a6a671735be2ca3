"""Imports point one way, read from the source of every file:

    adapters/{torch,paddle} -> adapters/families -> adapters/_* -> core -> backends -> errors

A framework is imported in the three files that are about it: ``adapters/torch.py``,
``backends/_torch.py`` and ``models/torch.py``. What would make one of them long is in its parts, which
lie beside it as ``_<framework>_<topic>.py``: a part is of the layer of its file, and imported by that
file alone. Checked on a planted violation of every rule, too, so that a silent checker is noticed.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tomecore

ROOT = Path(tomecore.__file__).parents[1]

#: The layers of tomecore that a layer may import. What is not named here stands beside and above.
MAY_IMPORT = {
    "errors": set(),
    "fallback": set(),
    "shelf": set(),
    "kernels": {"kernels"},
    "fused": {"kernels", "shelf"},
    "backends": {"errors", "fallback", "fused"},
    "backend": {"errors", "backends", "fused", "shelf"},
    "core": {"errors", "backends", "core"},
    "engine": {"errors", "backends", "core", "engine"},
    "families": {"errors", "backends", "core", "engine", "families"},
    "adapter": {"errors", "backends", "backend", "core", "engine", "families"},
    "models": {"errors", "models"},
}

#: The packages from elsewhere that a layer may import; "own" is the framework that the file, or the file
#: it is a part of, is named after.
FROM_ELSEWHERE = {
    "errors": set(),
    "fallback": {"array_api_compat"},
    "shelf": set(),
    "kernels": {"llvmlite", "numba", "numpy"},
    "fused": {"numba"},
    "backends": {"array_api_compat"},
    "backend": {"array_api_compat", "numpy", "own"},
    "core": {"numpy"},
    "engine": {"numpy"},
    "families": {"numpy"},
    "adapter": {"numpy", "own"},
    "models": {"numpy", "own", "safetensors"},
}

#: Where a module may be imported by a name that is only known when it runs.
BY_NAME = {
    "tomecore",
    "tomecore.adapters",
    "tomecore.adapters._host",
    "tomecore.adapters.families",
    "tomecore.backends",
}

#: Modules of ``tomecore.backends`` that are no library's backend.
SMALL_LAYERS = {
    "": "backends",
    "_standard": "fallback",
    "_shelf": "shelf",
    "_fused": "fused",
    "_compiled": "kernels",
    "_kernels": "kernels",
}

#: Modules of the core that have public names of their own.
PUBLIC_CORE = {"arithmetic", "schedule"}


def layer_of(module: str) -> str:
    """The layer of a module of tomecore; "outside" for what stands beside and above all layers."""
    top, _, rest = module.removeprefix("tomecore").removeprefix(".").partition(".")
    private = rest.startswith("_")
    if top == "errors":
        return "errors"
    if top == "backends":
        return SMALL_LAYERS.get(rest, "backend")
    if top == "adapters":
        if whole_of(module) is not None:
            return "adapter"
        if rest.startswith("families"):
            return "families"
        return "engine" if private or not rest else "adapter"
    if top == "models":
        return "models"
    return "core" if not top or top.startswith("_") or top in PUBLIC_CORE else "outside"


def whole_of(module: str) -> str | None:
    """The file about a framework that a module is a part of; None for what is no part."""
    found = re.fullmatch(r"(tomecore\.(adapters|backends|models))\._(torch|paddle)_\w+", module)
    if found is None:
        return None
    package, folder, framework = found.groups()
    return f"{package}.{'_' if folder == 'backends' else ''}{framework}"


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package under ``root`` and its file."""
    found = {}
    for path in sorted((root / "tomecore").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def statements(source: str) -> list[ast.AST]:
    """The nodes of a source that may import something."""
    kinds = (ast.Import, ast.ImportFrom, ast.Call)
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """(line, module) of everything imported anywhere in a file; "?" for a name known at run time."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in statements(path.read_text()):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *filter(None, [node.module])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield node.lineno, submodule if submodule in known else base
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in {"import_module", "__import__"}:
                argument = node.args[0] if node.args else None
                constant = isinstance(argument, ast.Constant)
                yield node.lineno, str(argument.value) if constant else "?"


def violations(root: Path) -> list[str]:
    """One line for each import that points the wrong way."""
    known, found = modules(root), []
    for name, path in known.items():
        layer = layer_of(name)
        if layer == "outside":
            continue
        own = (whole_of(name) or name).rpartition(".")[2].lstrip("_")
        for line, imported in imports(name, path, known):
            top = imported.partition(".")[0]
            if imported == "?":
                right = name in BY_NAME
            elif top == "tomecore":
                target = layer_of(imported)
                right = target in MAY_IMPORT[layer] and imported != whole_of(name)
                if layer == "adapter" and target == "backend":
                    right = imported.endswith(f"._{own}")
                if whole_of(imported) is not None:
                    right = name == whole_of(imported)
            else:
                allowed = {own if one == "own" else one for one in FROM_ELSEWHERE[layer]}
                right = top in sys.stdlib_module_names or top in allowed
            if not right:
                found.append(f"{path.relative_to(root)}:{line} ({layer}) imports {imported}")
    return found


def test_imports_point_one_way():
    assert violations(ROOT) == []


def test_the_layers_are_those_of_the_package():
    """A renamed file must not slip out of its layer."""
    expected = {
        "tomecore": "core",
        "tomecore._matching": "core",
        "tomecore._merging": "core",
        "tomecore._plan": "core",
        "tomecore._checks": "core",
        "tomecore._wishes": "core",
        "tomecore.arithmetic": "core",
        "tomecore.schedule": "core",
        "tomecore.errors": "errors",
        "tomecore.backends": "backends",
        "tomecore.backends._standard": "fallback",
        "tomecore.backends._fused": "fused",
        "tomecore.backends._compiled": "kernels",
        "tomecore.backends._kernels": "kernels",
        "tomecore.backends._numpy": "backend",
        "tomecore.backends._torch": "backend",
        "tomecore.backends._paddle": "backend",
        "tomecore.backends._jax": "backend",
        "tomecore.adapters": "engine",
        "tomecore.adapters._block": "engine",
        "tomecore.adapters._patch": "engine",
        "tomecore.adapters.families": "families",
        "tomecore.adapters.families.timm": "families",
        "tomecore.adapters.torch": "adapter",
        "tomecore.adapters.paddle": "adapter",
        "tomecore.adapters._torch_attention": "adapter",
        "tomecore.adapters._paddle_runs": "adapter",
        "tomecore.backends._torch_memory": "backend",
        "tomecore.models._paddle_weights": "models",
        "tomecore.models.torch": "models",
        "tomecore.models.paddle": "models",
    }
    found = {name: layer_of(name) for name in modules(ROOT)}
    assert expected.items() <= found.items()


@pytest.mark.parametrize("framework", ["torch", "paddle"])
def test_a_framework_is_imported_in_three_files_and_their_parts(framework):
    known = modules(ROOT)
    importing = {
        whole_of(name) or name
        for name, path in known.items()
        if layer_of(name) != "outside"
        and any(one.partition(".")[0] == framework for _, one in imports(name, path, known))
    }
    assert importing == {
        f"tomecore.adapters.{framework}",
        f"tomecore.backends._{framework}",
        f"tomecore.models.{framework}",
    }


PLANTED = [
    ("_plan.py", "import torch", "(core) imports torch"),
    ("_plan.py", "import array_api_compat.torch", "(core) imports array_api_compat.torch"),
    ("_merging.py", "def f():\n    import paddle.nn", "(core) imports paddle.nn"),
    ("_merging.py", "from tomecore import adapters", "(core) imports tomecore.adapters"),
    ("_merging.py", "from . import adapters", "(core) imports tomecore.adapters"),
    ("_matching.py", "from tomecore.adapters._state import Run", "tomecore.adapters._state"),
    ("_matching.py", "from tomecore.backends import _torch", "tomecore.backends._torch"),
    ("_matching.py", "from .backends._numpy import BACKEND", "tomecore.backends._numpy"),
    ("schedule.py", "from tomecore import models", "(core) imports tomecore.models"),
    ("_checks.py", "import importlib\nimportlib.import_module('jax')", "(core) imports jax"),
    ("_checks.py", "m = 'jax'\n__import__(m)", "(core) imports ?"),
    ("errors.py", "import tomecore.schedule", "(errors) imports tomecore.schedule"),
    ("backends/__init__.py", "import torch", "(backends) imports torch"),
    ("backends/__init__.py", "from tomecore import _plan", "(backends) imports tomecore._plan"),
    ("backends/__init__.py", "from tomecore.backends import _jax", "tomecore.backends._jax"),
    ("backends/_numpy.py", "import torch", "(backend) imports torch"),
    ("backends/_torch.py", "import paddle", "(backend) imports paddle"),
    ("backends/_torch.py", "from tomecore import schedule", "(backend) imports tomecore.schedule"),
    ("backends/_standard.py", "import numpy", "(fallback) imports numpy"),
    ("backends/_fused.py", "import torch", "(fused) imports torch"),
    (
        "backends/_kernels.py",
        "from tomecore import backends",
        "(kernels) imports tomecore.backends",
    ),
    ("backends/_torch.py", "from tomecore.backends import _kernels", "tomecore.backends._kernels"),
    ("adapters/_block.py", "import torch", "(engine) imports torch"),
    ("adapters/_block.py", "from tomecore.adapters import families", "(engine) imports tomecore"),
    ("adapters/_block.py", "from . import torch", "(engine) imports tomecore.adapters.torch"),
    ("adapters/_block.py", "from tomecore.backends import _torch", "(engine) imports tomecore"),
    ("adapters/__init__.py", "from tomecore.adapters import paddle", "tomecore.adapters.paddle"),
    ("adapters/families/timm.py", "import timm", "(families) imports timm"),
    ("adapters/families/timm.py", "import torch", "(families) imports torch"),
    ("adapters/families/timm.py", "from .. import torch", "imports tomecore.adapters.torch"),
    ("adapters/torch.py", "import paddle", "(adapter) imports paddle"),
    ("adapters/torch.py", "from tomecore.backends import _paddle", "tomecore.backends._paddle"),
    ("adapters/_torch_attention.py", "import paddle", "(adapter) imports paddle"),
    ("adapters/_torch_attention.py", "from . import torch", "imports tomecore.adapters.torch"),
    ("adapters/_torch_attention.py", "from ..backends import _paddle", "tomecore.backends._paddle"),
    ("adapters/_paddle_runs.py", "from . import _paddle_attention", "adapters._paddle_attention"),
    ("adapters/paddle.py", "from . import _torch_attention", "adapters._torch_attention"),
    ("adapters/_block.py", "from . import _torch_attention", "adapters._torch_attention"),
    ("adapters/families/timm.py", "from .. import _torch_attention", "adapters._torch_attention"),
    (
        "adapters/torch.py",
        "from ..backends import _torch_memory",
        "tomecore.backends._torch_memory",
    ),
    ("backends/_paddle.py", "from . import _torch_memory", "tomecore.backends._torch_memory"),
    ("backends/_torch_memory.py", "import paddle", "(backend) imports paddle"),
    (
        "backends/_torch_memory.py",
        "from tomecore.backends import _torch",
        "tomecore.backends._torch",
    ),
    ("backends/__init__.py", "from . import _torch_memory", "tomecore.backends._torch_memory"),
    ("models/_arguments.py", "from . import _torch_weights", "tomecore.models._torch_weights"),
    ("models/_torch_weights.py", "from . import torch", "(models) imports tomecore.models.torch"),
    ("adapters/torch.py", "from tomecore.adapters import paddle", "tomecore.adapters.paddle"),
    ("adapters/paddle.py", "from tomecore import demo", "(adapter) imports tomecore"),
    ("models/torch.py", "import timm", "(models) imports timm"),
    ("models/paddle.py", "import torch", "(models) imports torch"),
    ("models/torch.py", "import tomecore.adapters.torch", "(models) imports tomecore.adapters"),
]


@pytest.fixture
def copy(tmp_path):
    """A tree with a copy of the package, and a demo module that stands outside the layers."""
    ignored = shutil.ignore_patterns("__pycache__", "data")
    shutil.copytree(ROOT / "tomecore", tmp_path / "tomecore", ignore=ignored)
    (tmp_path / "tomecore" / "demo.py").write_text("import rich\nimport torch\nimport paddle\n")
    assert violations(tmp_path) == []
    return tmp_path


@pytest.mark.parametrize(("file", "source", "message"), PLANTED, ids=lambda value: str(value))
def test_a_planted_violation_is_found(copy, file, source, message):
    path = copy / "tomecore" / file
    path.write_text(f"{path.read_text()}\n{source}\n")
    (found,) = violations(copy)
    assert found.startswith(f"tomecore/{file}:{len(path.read_text().splitlines())} ")
    assert message in found


def test_nothing_below_imports_what_stands_outside(copy):
    path = copy / "tomecore" / "_plan.py"
    path.write_text(f"{path.read_text()}\nfrom tomecore.demo import anything\n")
    (found,) = violations(copy)
    assert found.endswith("(core) imports tomecore.demo")


def names_defined(tree: ast.Module) -> set[str]:
    """What a module's source binds at its top level, inside ``if`` and ``try`` too."""
    names, blocks = set(), list(tree.body)
    while blocks:
        node = blocks.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                names |= {one.id for one in ast.walk(target) if isinstance(one, ast.Name)}
        elif isinstance(node, ast.If | ast.Try | ast.With):
            blocks += [one for one in ast.iter_child_nodes(node) if isinstance(one, ast.stmt)]
    return names


def names_exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return None


def missing_names(source: str) -> set[str]:
    tree = ast.parse(source)
    return set(names_exported(tree) or []) - names_defined(tree)


@pytest.mark.parametrize("name", modules(ROOT))
def test_exported_names_exist(name):
    source = modules(ROOT)[name].read_text()
    assert missing_names(source) == set()
    exported = names_exported(ast.parse(source)) or []
    assert len(exported) == len(set(exported))


def test_a_missing_name_is_found():
    assert missing_names("__all__ = ['a', 'b', 'c']\na = 1\nif a:\n    from x import y as b\n") == {
        "c"
    }


def test_every_layer_says_what_it_exports():
    """Packages that only resolve others lazily, and the families' one-line package, export nothing."""
    silent = {
        name
        for name, path in modules(ROOT).items()
        if layer_of(name) in {"core", "errors", "backends", "fallback", "fused", "engine"}
        and names_exported(ast.parse(path.read_text())) is None
    }
    assert silent <= {"tomecore.adapters"}


@pytest.mark.parametrize("name", tomecore.__all__)
def test_public_names_are_documented(name):
    public = getattr(tomecore, name)
    if inspect.isclass(public) or inspect.isfunction(public):
        assert inspect.getdoc(public)
        members = vars(public).items() if inspect.isclass(public) else ()
        for member, value in members:
            value = value.fget if isinstance(value, property) else value
            if inspect.isfunction(value) and not member.startswith("_"):
                assert inspect.getdoc(value), f"{name}.{member}"
    else:
        assert name == "__version__"


def test_dir_names_what_is_public():
    assert set(tomecore.__all__) <= set(dir(tomecore))
    assert {"adapters", "backends", "errors", "schedule"} <= set(dir(tomecore))
    assert tomecore.errors.TomeError is sys.modules["tomecore.errors"].TomeError
    with pytest.raises(AttributeError, match="module 'tomecore' has no attribute 'nothing'"):
        tomecore.nothing  # noqa: B018
