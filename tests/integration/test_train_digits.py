"""The training script can be rerun: one step at each resolution gives a file that the demo could load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from safetensors.numpy import load_file

from tomecore.models import digits

ROOT = Path(__file__).parents[2]


def test_one_step_writes_weights_of_the_same_model(tmp_path: Path) -> None:
    out = tmp_path / "weights.safetensors"
    subprocess.run(
        [
            sys.executable,
            str(ROOT / "tools" / "train_digits.py"),
            *("--low-epochs", "1", "--high-epochs", "1", "--batch", "128", "--images", "128"),
            *("--threads", "1", "--out", str(out)),
        ],
        check=True,
        timeout=600,
    )
    shapes = {name: value.shape for name, value in load_file(out).items()}
    shipped = {name: value.shape for name, value in load_file(digits.weights_path()).items()}
    assert shapes == shipped
