"""Export a model that merges tokens to a file that runs without tomecore, and check that file.

    found = export(load("open_clip:ViT-B-16"), "tower.onnx", r=13)
    found.difference, found.cosine, found.speeds

The file is ONNX, or OpenVINO's, which is converted from the ONNX file. It runs at any batch size. It is kept
only if it computes what the model computes. ``tomecore export`` does the same on the command line.
"""

from tomecore.exporting._export import export
from tomecore.exporting._result import Exported, Speed
from tomecore.exporting._runtimes import run_file

__all__ = ["Exported", "Speed", "export", "run_file"]
