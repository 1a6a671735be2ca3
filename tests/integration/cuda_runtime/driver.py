"""Write the source of a driver library (libcuda) whose functions all return success."""

from __future__ import annotations

import re

__all__ = ["source_of"]

#: what PyTorch asks the driver for, and needs an answer to
ANSWERS = {
    "cuCtxGetCurrent": "int cuCtxGetCurrent(void **context) { *context = (void *)64; return 0; }",
    "cuCtxGetDevice": "int cuCtxGetDevice(int *device) { *device = 0; return 0; }",
    "cuDevicePrimaryCtxGetState": (
        "int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) "
        "{ *flags = 0; *active = 1; return 0; }"
    ),
}


def source_of(header: str) -> str:
    """Return C source with every function that the text of cuda.h declares."""
    names = set(re.findall(r"\bCUDAAPI\s+(cu\w+)\s*\(", header))
    names |= set(re.findall(r"#\s*define\s+cu\w+\s+__CUDA_API_PT\w*\((cu\w+)\)", header))
    names |= set(re.findall(r"#\s*define\s+cu\w+\s+(cu\w+_v\d)", header))
    names |= set(ANSWERS)
    return "\n".join(ANSWERS.get(name, f"int {name}() {{ return 0; }}") for name in sorted(names))
