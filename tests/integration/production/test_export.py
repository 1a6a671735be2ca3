"""torch.export and ONNX: one program for every batch size, with eager's numbers, after a file as well."""

from __future__ import annotations

import io

import onnxruntime
import pytest
import torch

import tomecore as tc
from production.models import close, images, kind_named
from tomecore.backends import Keys
from tomecore.backends.torch import BACKEND
from tomecore.core.mean import weighted_mean
from tomecore.errors import UnsupportedModelError
from tomecore.matching.bipartite import match_bipartite

# One of the models is exported in training mode on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Exporting a model while it is in training mode")

BATCH = {0: torch.export.Dim("batch", min=1, max=64)}


def exported(model, x, *, strict=False):
    return torch.export.export(model, (x,), dynamic_shapes=(BATCH,), strict=strict)


@torch.no_grad()
def test_program_for_any_batch_size(kind):
    model = kind.patched(r=8, depth=2)
    program = exported(model, images(2))
    for batch in (1, 2, 5):
        close(program.module()(images(batch)), model(images(batch)))
    model.r = 0  # the program keeps its r, and the model its own
    close(program.module()(images()), kind.patched(r=8, depth=2)(images()))


@torch.no_grad()
def test_strict_and_through_a_file(vit):
    model, file = vit.patched(r=[8, 5], depth=2), io.BytesIO()
    torch.export.save(exported(model, images(2), strict=True), file)
    file.seek(0)
    program = torch.export.load(file).module()
    for batch in (1, 5):
        close(program(images(batch)), model(images(batch)))


def test_the_model_works_on_after_export(vit):
    """Neither an eager forward pass nor its backward pass reads the remains of a trace."""
    model, x = vit.patched(r=8), images()
    expected = model(x)
    with torch.no_grad():
        exported(model, images(2))
    got = model(x)
    assert torch.equal(got, expected)
    got.sum().backward()
    assert model.tome.tokens == [58, 50, 42]


def decided_alike(kind, x, **settings):
    """Which samples merge the same tokens in single and in double precision: no near ties in them."""
    sources = []
    for dtype in (torch.float32, torch.float64):
        model = kind.patched(trace_source=True, **settings).to(dtype)
        model(x.to(dtype))
        sources.append(model.tome.source)
    return (sources[0] == sources[1]).all(dim=1)


def runs_onnx(model, x):
    """``model`` as onnxruntime runs it, exported with any batch size."""
    program = torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=(BATCH,), verbose=False)
    file = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm-vit", "timm-eva", "transformers-dinov2"])
def test_onnx(name):
    """In single precision: onnxruntime has no convolution in double."""
    kind, settings = kind_named(name), {"r": 8, "depth": 2}
    model = kind.patched(**settings).float()
    run = runs_onnx(model, images(2).float())
    for batch in (1, 2, 5):
        x = images(batch, seed=batch).float()
        alike = decided_alike(kind, x, **settings)
        assert alike.sum() > batch // 2
        close(run(x)[alike], model(x)[alike], 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm-vit", "transformers-dinov2"])
def test_onnx_has_no_sum_that_threads_lose(name):
    """onnxruntime's ScatterND(reduction="add") is wrong where two threads meet in one row."""
    model, x = kind_named(name).patched(r=8, depth=2).float(), images(2).float()
    program = torch.onnx.export(model, (x,), dynamo=True, dynamic_shapes=(BATCH,), verbose=False)
    file = program.model_proto
    nodes = [*file.graph.node, *(node for f in file.functions for node in f.node)]
    summing = {node.op_type for node in nodes if any(a.name == "reduction" for a in node.attribute)}
    assert summing <= {"ScatterElements"}


class Merge(torch.nn.Module):
    """The form that merges have in ONNX, with the plan."""

    def __init__(self, r, protected, axis):
        super().__init__()
        self.given, self.axis = (r, protected), axis

    def forward(self, keys, x, size=None):
        found = BACKEND.fused(Keys(keys, self.axis, 2), x, size, None, *self.given)
        return found.x, found.sizes, found.bias[:, 0, 0], found.tokens, found.into


@torch.no_grad()
@pytest.mark.filterwarnings(
    "ignore:# The axis name. batch will not be used"
)  # of each further input
@pytest.mark.parametrize(
    ("count", "protected", "r", "sized", "axis"),
    [
        (12, 0, 6, False, None),  # every even token merges; no order is kept
        (13, 0, 3, True, 1),
        (12, 1, 4, True, 2),
        (13, 2, 5, False, 1),
    ],
)
def test_a_merge_in_onnx(count, protected, r, sized, axis):
    """As the matching and the mean that define it, plan and all."""
    torch.manual_seed(count + r)
    heads, x = torch.randn(3, 2, count, 4), torch.randn(3, count, 8)
    size = torch.randint(1, 9, (3, count)).float() if sized else None
    keys = {1: heads, 2: heads.transpose(1, 2), None: heads.transpose(1, 2).flatten(2)}[axis]
    plan = match_bipartite(BACKEND, heads.sum(1), r, protected, None)
    mean, sizes = weighted_mean(plan, x, size)
    given = [keys, x, size][: 2 + sized]
    program = torch.onnx.export(
        Merge(r, protected, axis),
        tuple(one[:2] for one in given),
        dynamo=True,
        dynamic_shapes=(BATCH,) * len(given),
        verbose=False,
    )
    file = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    found = session.run(None, dict(zip(names, (one.numpy() for one in given), strict=True)))
    expected = [mean, sizes, sizes.log(), torch.cat([plan.kept, plan.merged], 1), plan.into]
    for one, other in zip(found, expected, strict=True):
        close(torch.from_numpy(one), other, 1e-6)


@torch.no_grad()
def test_an_export_in_another_thread_changes_nothing(vit, monkeypatch):
    """The state of the exporter belongs to the process, and its nodes would return zeros here."""
    model, x = vit.patched(r=8), images()
    expected = model(x)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    close(model(x), expected)


class Slots(torch.nn.Module):
    def forward(self, keys):
        return tc.bipartite_soft_matching(keys, 5, protected=1).slots


def test_onnx_decides_ties_alike():
    """Ties go to the first token, as everywhere: TopK stands for the stable sort that ONNX lacks."""
    keys = torch.ones(2, 25, 4)
    keys[:, 7::3] = images(2).flatten(1)[:, : 6 * 4].reshape(2, 6, 4).float()
    assert torch.equal(runs_onnx(Slots(), keys[:1].repeat(3, 1, 1))(keys), Slots()(keys))


@torch.no_grad()
def test_the_old_exporter_of_onnx_is_refused_while_tokens_merge(vit):
    """It would keep one of several tokens that merge into the same, and say nothing."""
    model, x = vit.patched(r=8, depth=2).float(), images(2).float()
    with pytest.raises(
        UnsupportedModelError, match=r"Export with dynamo=True, or set model\.r = 0"
    ):
        torch.onnx.export(model, (x,), io.BytesIO(), dynamo=False)
    model.r = 0
    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=False, input_names=["x"])
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x.numpy()})
    close(torch.from_numpy(found), model(x), 1e-5)


@pytest.mark.parametrize(
    "add",
    [
        lambda x, index: BACKEND.scatter_add(x, index, x[:, :2]),
        lambda x, index: BACKEND.accumulate(x[0] + 0, index[0], x[0, :2]),
        lambda x, index: BACKEND.accumulate_2d(x[:, :, 0] + 0, index, x[:, :2, 0]),
    ],
    ids=["scatter_add", "accumulate", "accumulate_2d"],
)
def test_each_sum_is_refused_by_itself(add):
    class Sum(torch.nn.Module):
        def forward(self, x, index):
            return add(x, index)

    given = images(1)[0].float(), torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises(UnsupportedModelError, match="Export with dynamo=True"):
        torch.onnx.export(Sum(), given, io.BytesIO(), dynamo=False)
