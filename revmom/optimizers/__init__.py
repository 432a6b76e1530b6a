"""Optimizers whose steps are bijections."""

from revmom.optimizers.reversible import ReversibleOptimizer, State
from revmom.optimizers.sgd import SGD, sgd

__all__ = ["SGD", "ReversibleOptimizer", "State", "sgd"]
