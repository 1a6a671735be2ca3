"""Imports point one way, read from the source of every file:

    cli, demo -> tools -> adapters/{torch,paddle} -> families, hosts -> engine
    -> schedule, matching -> core -> backends -> errors

``schedule`` also uses ``frameworks``, for the search, which runs models. Every layer may import ``_project``,
which imports nothing.

A framework is imported in the files that are about it: ``adapters/hosts/torch.py``, ``backends/torch.py`` and
``models/torch.py``, and their parts, which are next to them (``hosts/torch_attention.py``). A part belongs to
the layer of its file. Tools see the engine through ``tomecore.adapters`` and ``model.tome`` only, and each
other through their packages. No name with an underscore crosses from one layer to another, and there is no
cycle. The check also runs on a planted violation of every rule, so that a silent checker is noticed.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import inspect
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tomecore

ROOT = Path(tomecore.__file__).parents[1]

_BELOW = {"errors", "backends", "core", "matching", "schedule"}
_MODELS = {"frameworks", "models", "weights"}
#: What every tool may import.
_SEEN = {*_BELOW, *_MODELS, "adapter", "fused", "package"}
TOOLS = (
    "loading",
    "benchmark",
    "evaluation",
    "exporting",
    "parity",
    "visualization",
    "demo",
    "cli",
)
#: The layers of tomecore that a layer may import.
MAY_IMPORT = {
    "_project": set(),
    "errors": set(),
    "frameworks": {"errors"},
    "fallback": {"arrays", "errors", "fused"},
    "conformance": {"arrays", "conformance", "fallback"},
    "arrays": set(),
    "constants": {"arrays"},
    "kernels": {"kernels"},
    "fused": {"arrays", "kernels", "constants", "fused"},
    "operations": {"kernels"},
    "backends": {"arrays", "conformance", "errors", "fallback", "fused"},
    "backend": {"errors", "backends", "fused", "constants", "backend", "operations"},
    "core": {"errors", "backends", "core"},
    "matching": {"errors", "backends", "conformance", "core", "matching"},
    "schedule": {"errors", "core", "frameworks", "schedule"},
    "package": {"core", "matching", "schedule"},
    "engine": {*_BELOW, "engine"},
    "hosts": {*_BELOW, "backend", "engine", "hosts"},
    "families": {*_BELOW, "engine", "families"},
    "adapter": {*_BELOW, "engine", "families", "frameworks", "hosts"},
    "models": {"errors", "models"},
    "weights": {*_MODELS, "errors"},
    "loading": {*_SEEN, "loading"},
    "benchmark": {*_SEEN, "benchmark", "loading"},
    "evaluation": {*_SEEN, "evaluation", "loading"},
    "exporting": {*_SEEN, "benchmark", "exporting", "loading"},
    "parity": {*_SEEN, "loading", "parity"},
    "visualization": {*_SEEN, "loading", "visualization"},
    "demo": {*_SEEN, *TOOLS} - {"cli", "demo"},
    "cli": {*_SEEN, *TOOLS},
    "old path": {*_MODELS, "evaluation", "loading", "schedule", "visualization"},
}

#: The packages from elsewhere that a layer may import; "own" is the framework that the file is named after.
FROM_ELSEWHERE = {
    "_project": set(),
    "errors": set(),
    "frameworks": {"numpy", "paddle", "torch"},
    "fallback": {"array_api_compat"},
    "conformance": {"array_api_compat", "numpy"},
    "arrays": set(),
    "constants": set(),
    "kernels": {"llvmlite", "numba", "numpy", "triton"},
    "fused": {"numba"},
    "operations": {"own"},
    "backends": {"array_api_compat"},
    "backend": {"array_api_compat", "numpy", "own"},
    "core": {"numpy"},
    "matching": {"numpy"},
    "schedule": set(),
    "package": set(),
    "engine": {"numpy"},
    "hosts": {"numpy", "own"},
    "families": {"numpy"},
    "adapter": set(),
    "models": {"numpy", "own", "safetensors"},
    "weights": {"numpy", "paddle", "safetensors", "sklearn", "torch"},
    "old path": set(),
}

#: The constants of the project, which any module may import, although its name is private to the package.
PROJECT = "tomecore._project"

#: Where a module may be imported by a name that is only known when it runs.
BY_NAME = {
    "tomecore",
    "tomecore.adapters",
    "tomecore.adapters.engine.adapter",
    "tomecore.adapters.engine.host",
    "tomecore.adapters.families",
    "tomecore.backends",
    "tomecore.models",
    "tomecore.models.digits",
}
#: Old paths of public modules that moved; each re-exports the names of the new module, for users only.
OLD_PATHS = {"arithmetic", "digits", "distributed", "images", "running", "tracing"}

#: Modules of ``tomecore.backends`` that are not a library's backend.
SMALL_LAYERS = {
    "": "backends",
    "standard": "fallback",
    "required": "conformance",
    "conformance": "conformance",
    "arrays": "arrays",
    "constants": "constants",
    "partial_products": "constants",
    "kernels": "fused",
    "kernels.cpu": "kernels",
    "kernels.cpu.fused": "fused",
    "kernels.cpu.compile": "kernels",
    "kernels.cpu.loops": "kernels",
    "kernels.cuda": "kernels",
    "kernels.cuda.programs": "kernels",
    "kernels.cuda.torch_operations": "operations",
}

#: Folders of ``tomecore.adapters``; the files next to them are the adapters.
INSIDE_ADAPTERS = {"engine", "hosts", "families"}
FRAMEWORKS = ("torch", "paddle")


def layer_of(module: str) -> str:
    """The layer of a module of tomecore."""
    top, _, rest = module.removeprefix("tomecore").removeprefix(".").partition(".")
    if top == "backends":
        return SMALL_LAYERS.get(rest, "backend")
    if top == "adapters":
        folder = rest.partition(".")[0]
        return folder if folder in INSIDE_ADAPTERS else "adapter"
    if module in {"tomecore.models.convert", "tomecore.models.digits"}:
        return "weights"  # between the layouts of two frameworks
    if top in OLD_PATHS:
        return "old path"
    return "cli" if top == "__main__" else top or "package"


def framework_of(module: str) -> str:
    """Return the meaning of "own" in a module: the library that its file is named after."""
    return module.rpartition(".")[2].lstrip("_").partition("_")[0]


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
        for line, imported in imports(name, path, known):
            layer = layer_of(name)
            if not right(name, layer, imported):
                found.append(f"{path.relative_to(root)}:{line} ({layer}) imports {imported}")
    return found


def right(name: str, layer: str, imported: str) -> bool:
    """Whether the module ``name`` may import another."""
    top, own = imported.partition(".")[0], framework_of(name)
    if imported == "?":
        return name in BY_NAME or layer in TOOLS
    if top != "tomecore":
        if layer in TOOLS:
            return True
        allowed = {own if one == "own" else one for one in FROM_ELSEWHERE[layer]}
        return top in sys.stdlib_module_names or top in allowed
    if imported == PROJECT:
        return True
    target = layer_of(imported)
    if target not in MAY_IMPORT[layer]:
        return False
    if target in {"backend", "hosts"} or (layer == target == "models"):  # of its own framework
        other = framework_of(imported)
        if other in FRAMEWORKS and (other != own or imported == f"tomecore.models.{own}"):
            return False
    return target == layer or "._" not in imported


def test_imports_point_one_way():
    assert violations(ROOT) == []


def test_no_private_name_crosses_a_storey():
    known, found = modules(ROOT), []
    for name, path in known.items():
        for node in statements(path.read_text()):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tomecore"):
                private = [one.name for one in node.names if one.name.startswith("_")]
                if private and layer_of(node.module) != layer_of(name):
                    found.append(f"{name} imports {private} of {node.module}")
    assert found == []


def circle(root: Path) -> list[str]:
    """Modules that import each other in a circle, lazily or not; empty if there is none."""
    known = modules(root)
    graph = {
        name: {one for _, one in imports(name, path, known) if one in known and one != name}
        for name, path in known.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_there_is_no_circle():
    assert circle(ROOT) == []


def test_the_layers_have_no_circle():
    graph = {layer: below - {layer} for layer, below in MAY_IMPORT.items()}
    graphlib.TopologicalSorter(graph).prepare()
    assert {layer_of(name) for name in modules(ROOT)} <= set(MAY_IMPORT)


def test_old_paths_only_hand_on_names():
    """Nothing in the package uses them, and they are nothing but an import and ``__all__``."""
    known = modules(ROOT)
    for old in OLD_PATHS:
        body = ast.parse(known[f"tomecore.{old}"].read_text()).body
        assert [type(node).__name__ for node in body] == ["Expr", "ImportFrom", "Assign"], old
        (imported,) = (node for node in body if isinstance(node, ast.ImportFrom))
        assert sorted(alias.name for alias in imported.names) == sorted(
            names_exported(ast.Module(body, []))
        )


def test_the_layers_are_those_of_the_package():
    """A renamed file must not slip out of its layer."""
    expected = {
        "tomecore": "package",
        "tomecore.__main__": "cli",
        "tomecore._project": "_project",
        "tomecore.core.merging": "core",
        "tomecore.core.plan": "core",
        "tomecore.matching": "matching",
        "tomecore.matching.bipartite": "matching",
        "tomecore.schedule": "schedule",
        "tomecore.schedule.arithmetic": "schedule",
        "tomecore.errors": "errors",
        "tomecore.frameworks": "frameworks",
        "tomecore.backends": "backends",
        "tomecore.backends.arrays": "arrays",
        "tomecore.backends.standard": "fallback",
        "tomecore.backends.kernels.cpu.fused": "fused",
        "tomecore.backends.kernels.cpu.compile": "kernels",
        "tomecore.backends.kernels.cpu.loops": "kernels",
        "tomecore.backends.kernels.cpu.torch": "backend",
        "tomecore.backends.kernels.cuda.programs": "kernels",
        "tomecore.backends.kernels.cuda.torch": "backend",
        "tomecore.backends.kernels.cuda.torch_operations": "operations",
        "tomecore.backends.numpy": "backend",
        "tomecore.backends.torch": "backend",
        "tomecore.backends.torch_products": "backend",
        "tomecore.backends.paddle": "backend",
        "tomecore.backends.jax": "backend",
        "tomecore.adapters": "adapter",
        "tomecore.adapters.engine.block": "engine",
        "tomecore.adapters.engine.patch": "engine",
        "tomecore.adapters.families": "families",
        "tomecore.adapters.families.timm.vit": "families",
        "tomecore.adapters.hosts.torch": "hosts",
        "tomecore.adapters.hosts.torch_attention": "hosts",
        "tomecore.adapters.torch": "adapter",
        "tomecore.adapters.paddle": "adapter",
        "tomecore.models.torch": "models",
        "tomecore.models.paddle": "models",
    }
    found = {name: layer_of(name) for name in modules(ROOT)}
    assert expected.items() <= found.items()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_is_imported_in_three_files_and_their_parts(framework):
    known = modules(ROOT)
    importing = {
        f"{name.rpartition('.')[0]}.{framework_of(name)}"
        for name, path in known.items()
        if layer_of(name) not in {"frameworks", "weights", *TOOLS}
        and any(one.partition(".")[0] == framework for _, one in imports(name, path, known))
    }
    on_gpu = {"tomecore.backends.kernels.cuda.torch"} if framework == "torch" else set()
    assert importing == on_gpu | {
        f"tomecore.adapters.hosts.{framework}",
        f"tomecore.backends.{framework}",
        f"tomecore.backends.kernels.cpu.{framework}",
        f"tomecore.models.{framework}",
    }


PLANTED = [
    ("core/plan.py", "import torch", "(core) imports torch"),
    ("core/plan.py", "import array_api_compat.torch", "(core) imports array_api_compat.torch"),
    ("core/merging.py", "def f():\n    import paddle.nn", "(core) imports paddle.nn"),
    ("core/merging.py", "from tomecore import adapters", "(core) imports tomecore.adapters"),
    ("core/merging.py", "from .. import adapters", "(core) imports tomecore.adapters"),
    ("core/merging.py", "from tomecore import matching", "(core) imports tomecore.matching"),
    ("matching/kth.py", "from tomecore.adapters.engine.state import Run", "engine.state"),
    ("matching/kth.py", "from tomecore.backends import torch", "tomecore.backends.torch"),
    ("matching/kth.py", "from ..backends.numpy import BACKEND", "tomecore.backends.numpy"),
    ("matching/kth.py", "from tomecore import schedule", "(matching) imports tomecore.schedule"),
    ("schedule/parse.py", "from tomecore import models", "(schedule) imports tomecore.models"),
    ("schedule/rules.py", "import numpy", "(schedule) imports numpy"),
    ("core/checks.py", "import importlib\nimportlib.import_module('jax')", "(core) imports jax"),
    ("core/checks.py", "m = 'jax'\n__import__(m)", "(core) imports ?"),
    ("errors.py", "import tomecore.schedule", "(errors) imports tomecore.schedule"),
    ("_project.py", "from tomecore import errors", "(_project) imports tomecore.errors"),
    ("frameworks.py", "from tomecore import models", "(frameworks) imports tomecore.models"),
    ("backends/__init__.py", "import torch", "(backends) imports torch"),
    ("backends/__init__.py", "from tomecore.core import plan", "imports tomecore.core.plan"),
    ("backends/__init__.py", "from tomecore.backends import jax", "tomecore.backends.jax"),
    ("backends/arrays.py", "import numpy", "(arrays) imports numpy"),
    ("backends/arrays.py", "from tomecore import errors", "(arrays) imports tomecore.errors"),
    ("backends/numpy.py", "import torch", "(backend) imports torch"),
    ("backends/torch.py", "import paddle", "(backend) imports paddle"),
    ("backends/torch.py", "from tomecore import schedule", "(backend) imports tomecore.schedule"),
    ("backends/standard.py", "import numpy", "(fallback) imports numpy"),
    ("backends/kernels/cpu/fused.py", "import torch", "(fused) imports torch"),
    ("backends/kernels/cpu/loops.py", "from tomecore import backends", "(kernels) imports"),
    ("backends/torch.py", "from tomecore.backends.kernels.cpu import loops", "kernels.cpu.loops"),
    ("backends/paddle.py", "from .kernels.cpu import torch", "kernels.cpu.torch"),
    ("backends/kernels/cpu/torch.py", "import paddle", "(backend) imports paddle"),
    ("backends/__init__.py", "from .kernels.cpu import torch", "kernels.cpu.torch"),
    ("adapters/engine/block.py", "import torch", "(engine) imports torch"),
    ("adapters/engine/block.py", "from tomecore.adapters import families", "imports tomecore"),
    (
        "adapters/engine/block.py",
        "from .. import torch",
        "(engine) imports tomecore.adapters.torch",
    ),
    (
        "adapters/engine/block.py",
        "from tomecore.backends import torch",
        "(engine) imports tomecore",
    ),
    ("adapters/engine/block.py", "from ..hosts import torch_attention", "hosts.torch_attention"),
    ("adapters/__init__.py", "import torch", "(adapter) imports torch"),
    ("adapters/families/timm/vit.py", "import timm", "(families) imports timm"),
    ("adapters/families/timm/vit.py", "import torch", "(families) imports torch"),
    ("adapters/families/timm/vit.py", "from ... import torch", "imports tomecore.adapters.torch"),
    ("adapters/families/dinov2.py", "from ..hosts import torch_attention", "torch_attention"),
    ("adapters/torch.py", "import torch", "(adapter) imports torch"),
    ("adapters/torch.py", "from tomecore.backends import torch", "tomecore.backends.torch"),
    ("adapters/torch.py", "from tomecore.adapters import paddle", "tomecore.adapters.paddle"),
    ("adapters/paddle.py", "from .hosts import torch_attention", "hosts.torch_attention"),
    ("adapters/paddle.py", "from tomecore import demo", "(adapter) imports tomecore"),
    ("parity/_flip.py", "from tomecore.adapters.engine import patch", "engine.patch"),
    ("benchmark/_forms.py", "from tomecore.adapters.hosts.torch import HOST", "hosts.torch"),
    ("loading/_torch.py", "from tomecore.demo import run", "(loading) imports tomecore.demo"),
    ("benchmark/_forms.py", "def f():\n    from tomecore import demo", "imports tomecore.demo"),
    ("benchmark/_forms.py", "from tomecore.loading import _torch", "tomecore.loading._torch"),
    ("exporting/_export.py", "from tomecore import evaluation", "imports tomecore.evaluation"),
    ("visualization/_page.py", "from tomecore import benchmark", "imports tomecore.benchmark"),
    ("cli/bench.py", "from tomecore.benchmark._timing import quartiles", "benchmark._timing"),
    ("demo.py", "from tomecore.cli import main", "(demo) imports tomecore.cli"),
    ("parity/_flip.py", "from tomecore import tracing", "(parity) imports tomecore.tracing"),
    ("adapters/hosts/torch.py", "import paddle", "(hosts) imports paddle"),
    ("adapters/hosts/torch.py", "from tomecore.backends import paddle", "tomecore.backends.paddle"),
    ("adapters/hosts/torch.py", "from tomecore.adapters import families", "(hosts) imports"),
    ("adapters/hosts/paddle_state.py", "from . import torch", "tomecore.adapters.hosts.torch"),
    ("models/_arguments.py", "from . import _torch_weights", "tomecore.models._torch_weights"),
    ("models/_torch_weights.py", "from . import torch", "(models) imports tomecore.models.torch"),
    ("models/torch.py", "import timm", "(models) imports timm"),
    ("models/paddle.py", "import torch", "(models) imports torch"),
    ("models/torch.py", "import tomecore.adapters.torch", "(models) imports tomecore.adapters"),
]


@pytest.fixture
def copy(tmp_path):
    """A tree with a copy of the package."""
    ignored = shutil.ignore_patterns("__pycache__", "data")
    shutil.copytree(ROOT / "tomecore", tmp_path / "tomecore", ignore=ignored)
    assert violations(tmp_path) == []
    return tmp_path


@pytest.mark.parametrize(("file", "source", "message"), PLANTED, ids=lambda value: str(value))
def test_a_planted_violation_is_found(copy, file, source, message):
    path = copy / "tomecore" / file
    path.write_text(f"{path.read_text()}\n{source}\n")
    (found,) = violations(copy)
    assert found.startswith(f"tomecore/{file}:{len(path.read_text().splitlines())} ")
    assert message in found


def test_a_planted_circle_is_found(copy):
    path = copy / "tomecore" / "benchmark" / "_timing.py"
    path.write_text(f"{path.read_text()}\ndef f():\n    from tomecore.benchmark import _measure\n")
    assert {"tomecore.benchmark._timing", "tomecore.benchmark._measure"} <= set(circle(copy))


def names_defined(tree: ast.Module) -> set[str]:
    """Return the names that a module's source binds at its top level, inside ``if`` and ``try`` too."""
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
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if getattr(target, "id", "") == "__all__":
            return ast.literal_eval(value)
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
    """Backends and models are reached by other means; packages may define nothing, or resolve lazily."""
    silent = {
        name
        for name, path in modules(ROOT).items()
        if layer_of(name) not in {"kernels", "backend", "models", "demo", "cli"}
        and names_exported(ast.parse(path.read_text())) is None
        and names_defined(ast.parse(path.read_text()))
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
        getattr(tomecore, "nothing")  # noqa: B009
