"""One plain vision transformer per framework: the ground the demo and the parity tests stand on.

``tomecore.models.torch`` uses timm's parameter names, ``tomecore.models.paddle`` those of PLSC and
PaddleClas, so published weights load into either without a model library. This file imports
nothing: a user of one framework never loads the other. The models know nothing of merging.
"""
