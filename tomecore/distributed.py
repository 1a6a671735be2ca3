"""The old path of :mod:`tomecore.evaluation.distributed`."""

from tomecore.evaluation.distributed import ALONE, Processes, join, local_rank

__all__ = ["ALONE", "Processes", "join", "local_rank"]
