"""One thread for the models of libraries, which are tiny: more threads only wait for each other."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
