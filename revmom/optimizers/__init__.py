"""Optimizers whose steps are bijections."""

from revmom.optimizers.as_optax import ReversibleTransformation, as_optax
from revmom.optimizers.reversible import ReversibleOptimizer, State
from revmom.optimizers.sgd import SGD, sgd

__all__ = [
  "SGD",
  "ReversibleOptimizer",
  "ReversibleTransformation",
  "State",
  "as_optax",
  "sgd",
]
