"""Real models, built small with random weights: one list per library, one line per kind of model.

A line in ``PLAIN`` puts a model under every law of ``test_laws.py``, some of which know the anatomy of
a plain ViT's block; a line in ``MORE`` under those of ``test_laws_of_families.py``, which hold for any.
"""

from __future__ import annotations

from adapters.cases import Case

from vits import of_dinov2, of_open_clip, of_paddle, of_timm, of_torchvision, of_transformers

__all__ = ["MORE", "PLAIN", "case_named"]

PLAIN = [*of_timm.PLAIN, *of_paddle.PLAIN]
MORE = [
    *of_timm.MORE,
    *of_torchvision.MORE,
    *of_open_clip.MORE,
    *of_dinov2.MORE,
    *of_paddle.MORE,
    *of_transformers.MORE,
]


def case_named(name: str) -> Case:
    return next(case for case in [*PLAIN, *MORE] if case.name == name)
