# What `import tomecore` offers, for type checkers and editors, which do not run __getattr__ of __init__.py.
# tests/test_public_names.py compares the two.

from tomecore import adapters as adapters
from tomecore import arithmetic as arithmetic
from tomecore import backends as backends
from tomecore import benchmark as benchmark
from tomecore import demo as demo
from tomecore import digits as digits
from tomecore import distributed as distributed
from tomecore import errors as errors
from tomecore import evaluation as evaluation
from tomecore import exporting as exporting
from tomecore import frameworks as frameworks
from tomecore import images as images
from tomecore import loading as loading
from tomecore import matching as matching
from tomecore import models as models
from tomecore import parity as parity
from tomecore import running as running
from tomecore import schedule as schedule
from tomecore import tracing as tracing
from tomecore import visualization as visualization
from tomecore.adapters import apply_patch as apply_patch
from tomecore.adapters import remove_patch as remove_patch
from tomecore.core.merging import compose as compose
from tomecore.core.merging import merge_weighted as merge_weighted
from tomecore.core.plan import MergePlan as MergePlan
from tomecore.exporting import export as export
from tomecore.matching import bipartite_soft_matching as bipartite_soft_matching
from tomecore.matching import kth_bipartite_soft_matching as kth_bipartite_soft_matching
from tomecore.matching import partition_matching as partition_matching
from tomecore.matching import random_bipartite_soft_matching as random_bipartite_soft_matching
from tomecore.schedule import parse_r as parse_r
from tomecore.schedule import tokens_per_layer as tokens_per_layer
from tomecore.visualization import visualize as visualize

__all__: list[str]
__version__: str
