"""revmom: learning dynamics as bijections."""

from revmom.optimizers import ReversibleOptimizer, sgd
from revmom.training import Run, rewind, train

__all__ = ["ReversibleOptimizer", "Run", "rewind", "sgd", "train"]
