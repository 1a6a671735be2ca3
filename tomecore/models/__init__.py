"""One plain vision transformer per framework, for the demo and the parity tests.

``tomecore.models.torch`` uses timm's parameter names, ``tomecore.models.paddle`` those of PLSC and
PaddleClas, so published weights load into either without a model library. This file imports
nothing, so a user of one framework never loads the other. The models contain no merging code.
"""
