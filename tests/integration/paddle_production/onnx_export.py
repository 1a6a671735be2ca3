"""Export patched Paddle models to ONNX and run them in onnxruntime, in a separate process.

paddle2onnx may abort the process.

    python onnx_export.py NAME ...

One JSON line for each: the largest difference at batches that were not exported, relative to the largest
logit, and the scatters in the graph.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import paddle
from adapters.cases import OWN
from adapters.frameworks import PADDLE
from vits.of_paddle import MORE, PLAIN

from tomecore.adapters import paddle as tome

CASES = {case.name: case for case in (*OWN, *PLAIN, *MORE) if case.fw is PADDLE}


def exported(model, folder, opset=17, spec=True):
    """The session of an exported model, on two threads, where a sum could lose updates."""
    path = str(Path(folder) / "model")
    named = [paddle.static.InputSpec([None, 3, 32, 32], "float32", "x")] if spec else None
    paddle.onnx.export(model, path, input_spec=named, opset_version=opset)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(path + ".onnx", options, providers=["CPUExecutionProvider"])


def images(batch, alike):
    """With ``alike``, all patches but those of the first row are one: many tokens merge into one."""
    x = np.random.default_rng(batch).standard_normal((batch, 3, 32, 32)).astype("float32")
    if alike:
        x[:, :, 4:] = 1.0
    return x


def off(model, session):
    worst = 0.0
    for batch in (1, 3, 5):
        for alike in (False, True):
            x = images(batch, alike)
            got = session.run(None, {session.get_inputs()[0].name: x})[0]
            expected = model(paddle.to_tensor(x)).numpy()
            worst = max(worst, float(np.abs(got - expected).max() / np.abs(expected).max()))
    return worst


def result(name):
    """Export ``case``, ``case trim``, ``case traced`` (by ``to_static``, before), ``case 9`` (the opset)."""
    case, _, how = name.partition(" ")
    model = CASES[case].fw.single(CASES[case].model(depth=3))
    model.eval()
    tome.apply_patch(model, r=[8, 0, 9], trim_last=how == "trim")
    with tempfile.TemporaryDirectory() as folder:
        if how == "traced":
            spec = [paddle.static.InputSpec([None, 3, 32, 32], "float32", "x")]
            model = paddle.jit.to_static(model, input_spec=spec, full_graph=True)
            model(paddle.to_tensor(images(2, False)))
        session = exported(model, folder, int(how) if how.isdigit() else 17, how != "traced")
        nodes = onnx.load(str(Path(folder) / "model.onnx")).graph.node
        scatters = sorted({node.op_type for node in nodes if "Scatter" in node.op_type})
        return {"name": name, "off": off(model, session), "scatters": scatters}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(json.dumps(result(name)), flush=True)
