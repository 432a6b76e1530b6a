"""revmom: learning dynamics as bijections."""

from revmom.optimizers import ReversibleOptimizer, State, as_optax, sgd
from revmom.training import (
  Receipt,
  Run,
  Stepper,
  fingerprint,
  rewind,
  train,
)

__all__ = [
  "Receipt",
  "ReversibleOptimizer",
  "Run",
  "State",
  "Stepper",
  "as_optax",
  "fingerprint",
  "rewind",
  "sgd",
  "train",
]
