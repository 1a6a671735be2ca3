"""Paddle only: static graphs, recomputation on copies, a separate attention half."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle.distributed.fleet.utils import recompute
from paddle.jit.sot import psdb

from adapters.cases import OWN, by_name
from tomecore.adapters import paddle as tome
from tomecore.adapters.engine import block as block_module
from tomecore.adapters.hosts import paddle as paddle_host
from tomecore.adapters.hosts import paddle_attention as forms
from tomecore.errors import NoForwardError, UnsupportedModelError

CASES = by_name(OWN)
PLAIN = CASES["paddle-plain"]


#: Paddle's static graphs keep some constants in float32: unpatched models are 1e-8 off as well.
STATIC = 1e-7


def static(model, full_graph=True, dtype="float64"):
    spec = [paddle.static.InputSpec([None, 3, 32, 32], dtype)] if full_graph else None
    return paddle.jit.to_static(model, input_spec=spec, full_graph=full_graph)


@pytest.fixture
def model():
    return PLAIN.patched(r=8)


@pytest.mark.filterwarnings("ignore:The program will return to single-card operation:UserWarning")
def test_data_parallel_is_refused_and_names_the_inner_model():
    model = PLAIN.model()
    wrapped = paddle.DataParallel(model)
    before = PLAIN.fw.fingerprint(model)
    text = r"wrapped in DataParallel: .*apply_patch\(model\._layers\), then set model\._layers\.r"
    with pytest.raises(UnsupportedModelError, match=text):
        tome.apply_patch(wrapped, r=8)
    assert PLAIN.fw.fingerprint(model) == before


@pytest.mark.parametrize("kind", ["pre_hook", "post_hook"])
def test_a_hook_on_an_attention_that_is_bypassed(kind):
    model = PLAIN.model()
    hook = getattr(PLAIN.fw, kind)(model.blocks[1].attn, lambda *_: None)
    before = PLAIN.fw.fingerprint(model)
    with pytest.raises(UnsupportedModelError, match=r"model\.blocks\[1\]\.attn has forward hooks"):
        tome.apply_patch(model, r=8)
    assert PLAIN.fw.fingerprint(model) == before
    hook.remove()
    tome.apply_patch(model, r=8)
    getattr(PLAIN.fw, kind)(model.blocks[1].attn, lambda *_: None)
    with pytest.raises(
        UnsupportedModelError, match=r"blocks\[1\] .* attn \(Attention\) has a forward hook"
    ):
        model(PLAIN.tensors())
    model.r = 0
    model(PLAIN.tensors())


def same(program, images, expected):
    """On three batch sizes."""
    for n in (3, 1, 2):
        np.testing.assert_allclose(
            program(images[:n]).numpy(), expected[:n], rtol=0, atol=STATIC * np.abs(expected).max()
        )


@pytest.mark.graph
@pytest.mark.parametrize(
    ("name", "r"),
    [("paddle-plain", [0, 8]), ("paddle-distilled", 8), ("paddle-average", 8)],
)
def test_a_static_graph_computes_the_same(name, r):
    case = CASES[name]
    model = case.patched(depth=2, r=r)
    images = case.tensors(3)
    expected = case.fw.numpy(model(images))
    same(static(model), images, expected)
    assert model.tome._config.traced_state is None


@pytest.mark.graph
def test_a_graph_that_may_break_runs_blocks_as_they_are():
    """The default of to_static; a new r counts at once, and results are kept."""
    model, images = PLAIN.patched(depth=2), PLAIN.tensors(3)
    program = static(model, full_graph=False)
    for r in (8, 0):
        model.r = r
        same(program, images, PLAIN.fw.numpy(PLAIN.patched(depth=2, r=r)(images)))
        assert model.tome.tokens[0] == 65 - r


@pytest.mark.graph
def test_a_static_graph_keeps_no_results_and_leaves_with_the_patch():
    model, images = PLAIN.patched(depth=2, r=8), PLAIN.tensors()
    program = static(model)
    program(images)
    with pytest.raises(NoForwardError, match="ran as a compiled or exported graph"):
        model.tome.sizes  # noqa: B018
    tome.remove_patch(model)
    assert "forward" not in vars(model)
    assert np.array_equal(
        PLAIN.fw.numpy(model(images)), PLAIN.fw.numpy(PLAIN.model(depth=2)(images))
    )


@pytest.mark.graph
def test_gradients_through_a_static_graph():
    model = PLAIN.patched(depth=2, r=8)
    model.train()
    images = PLAIN.tensors()
    expected = PLAIN.fw.gradients(model, lambda: (model(images) ** 2).sum())
    program = static(model)
    got = PLAIN.fw.gradients(model, lambda: (program(images) ** 2).sum())
    for name, gradient in expected.items():
        limit = STATIC * max(1.0, np.abs(gradient).max())
        np.testing.assert_allclose(got[name], gradient, rtol=0, atol=limit, err_msg=name)


@pytest.mark.graph
def test_the_default_predictor(tmp_path):
    """Its oneDNN logarithm overwrites its input: without a copy, sizes become their logarithms."""
    model = PLAIN.fw.single(PLAIN.patched(depth=3, r=8))
    images = PLAIN.images().astype("float32")
    expected = model(paddle.to_tensor(images)).numpy()
    path = str(tmp_path / "vit")
    paddle.jit.save(static(model, dtype="float32"), path)
    loaded = paddle.jit.load(path)(paddle.to_tensor(images)).numpy()
    config = paddle.inference.Config(path + ".json", path + ".pdiparams")
    config.disable_glog_info()
    predicted = paddle.inference.create_predictor(config).run([paddle.to_tensor(images)])
    for got in (loaded, predicted[0].numpy()):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def tracings(monkeypatch):
    """Return a list that records ``tracing`` in each block from now on."""
    clamp, seen = block_module.clamp, []

    def remember(config, run):
        seen.append(tome.HOST.tracing())
        return clamp(config, run)

    monkeypatch.setattr(block_module, "clamp", remember)
    return seen


@pytest.mark.graph
def test_tracing_is_seen(monkeypatch):
    model = PLAIN.patched(depth=2, r=8)
    seen = tracings(monkeypatch)
    model(PLAIN.tensors())
    assert seen == [False] * 2
    static(model)(PLAIN.tensors())
    assert seen == [False] * 2 + [True] * 2


def test_sot_obeys_the_order_to_run_as_is(model, monkeypatch):
    """Private in Paddle, and does nothing where SOT does not simulate it."""
    assert tome.HOST.run_as_is is psdb.fallback
    assert psdb.fallback(True) is None
    seen = tracings(monkeypatch)
    static(model, full_graph=False)(PLAIN.tensors())
    assert seen == [False] * 4


def test_double_precision_is_for_floats():
    """A copy to try a block out on keeps what its modules index with, and masks."""
    outer, inner = paddle.nn.Sequential(paddle.nn.Linear(2, 2)), paddle.nn.Linear(2, 2)
    inner.register_buffer("index", paddle.to_tensor([1, 0]))
    inner.register_buffer("mask", paddle.to_tensor([True, False]))
    inner.register_buffer("table", paddle.ones([2]))
    outer.add_sublayer("inner", inner)
    assert tome.HOST.double(outer) is outer
    assert {p.dtype for p in outer.parameters()} == {paddle.float64}
    dtypes = {name: buffer.dtype for name, buffer in inner.named_buffers()}
    assert dtypes == {"index": paddle.int64, "mask": paddle.bool, "table": paddle.float64}
    assert inner(paddle.ones([1, 2], dtype="float64"))[:, inner.index].dtype == paddle.float64


#: the methods that make the tensors a recomputed region starts from; Paddle 3.3.0 has only the second
COPIES = [name for name in ("_new_shared_tensor", "detach") if hasattr(paddle.Tensor, name)]


def test_the_copies_that_recomputation_makes():
    assert COPIES[-1] == "detach"
    model = PLAIN.patched(r=8)
    model.train()
    config = model.tome._config
    entered = []

    def look(module, args):
        entered.append(tome.HOST.read(config, args[0], tracing=False))

    hook = PLAIN.fw.pre_hook(model.blocks[2], look)
    x = PLAIN.fw.tokens(model, PLAIN.images())
    for block in model.blocks:
        x = recompute(block, x, use_reentrant=True)
    x.sum().backward()
    hook.remove()
    assert [run.tokens for run in entered] == [(57, 49)] * 2
    assert entered[0] is entered[1]


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_made_for_recomputation_carries_the_run(model, name):
    config = model.tome._config
    y = model.blocks[0](PLAIN.fw.tokens(model, PLAIN.images()))
    run = tome.HOST.read(config, y, tracing=False)
    with paddle.no_grad():  # as in a reentrant recomputation
        tome.HOST.write(config, y, run, tracing=False)
    assert tome.HOST.read(config, getattr(y, name)(), tracing=False) is run
    method = getattr(y, name)
    del y
    with pytest.raises(RuntimeError, match="that no variable holds any more; keep it in a var"):
        method()


def test_an_ordinary_detach_works_on_a_temporary(model):
    x = PLAIN.fw.tokens(model, PLAIN.images())
    assert model.blocks[0](x).detach().shape == [3, 57, 32]
    with paddle.no_grad():
        assert model.blocks[0](x).detach().shape == [3, 57, 32]


def test_recomputation_is_seen(model):
    """Read from the stack, because a backward pass inside another clears Paddle's own flag.

    A user's function may compute its region again; a hook begins passes of its own.
    """
    seen = []

    class Look(paddle.autograd.PyLayer):
        @staticmethod
        def forward(ctx, x):
            seen.append(tome.HOST.recomputing())
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            seen.append(tome.HOST.recomputing())
            return gradient * 2

    x = paddle.ones([2])
    x.stop_gradient = False
    y = Look.apply(x)
    y.register_hook(lambda gradient: seen.append(tome.HOST.recomputing()))
    y.sum().backward()
    assert seen == [False, False, True]
    assert not tome.HOST.recomputing()


@pytest.mark.parametrize("rows", [9, 1])
@pytest.mark.parametrize("scale", [8**-0.5, 0.2])
@pytest.mark.parametrize("biased", ["sizes", "sizes of padding", "pairs"])
def test_a_bias_of_keys_is_a_column_of_theirs(biased, scale, rows, monkeypatch):
    """On a CPU; the same numbers and gradients as the kernel with a mask gives."""
    paddle.seed(0)
    q, k, v = (paddle.randn([2, n, 4, 8], dtype="float64") for n in (rows, 9, 9))
    bias = paddle.log(paddle.randint(1, 9, [2, 9]).astype("float64")).unsqueeze([1, 2])
    if biased == "sizes of padding":
        bias[1, 0, 0, 7:] = float("-inf")
    if biased == "pairs":
        bias = bias + paddle.randn([2, 4, rows, 9], dtype="float64")
    columns = []
    by_column = forms.with_key_column
    monkeypatch.setitem(forms.FORMS, "key column", lambda *a: columns.append(1) or by_column(*a))

    def attended():
        for t in (q, k, v):
            t.stop_gradient = False
            t.clear_gradient()
        y = tome.HOST.attention(q, k, v, bias, dropout=0.0, scale=scale)
        (y**2).sum().backward()
        return [t.numpy() for t in (y, q.grad, k.grad, v.grad)]

    found = attended()
    assert len(columns) == (biased != "pairs")
    monkeypatch.setattr(paddle_host, "form_of", lambda *a: "mask")
    for ours, kernel in zip(found, attended(), strict=True):
        np.testing.assert_allclose(ours, kernel, rtol=1e-12, atol=1e-13)
    assert len(columns) == (biased != "pairs")


def test_dropped_attention_weights_keep_the_mask(monkeypatch):
    monkeypatch.setitem(forms.FORMS, "key column", None)
    q = paddle.randn([2, 9, 4, 8])
    bias = paddle.zeros([2, 1, 1, 9])
    assert tome.HOST.attention(q, q, q, bias, dropout=0.5, scale=0.3).shape == [2, 9, 4, 8]
