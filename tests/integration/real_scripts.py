"""The modules of ``benchmarks/real.py``, which import one another."""

from __future__ import annotations

import sys

from scripts import load_script

script = load_script("benchmarks/real.py")
images, measure = sys.modules["real_images"], sys.modules["real_measure"]
model, tables = sys.modules["real_model"], sys.modules["real_tables"]
