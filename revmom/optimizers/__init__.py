"""Optimizers whose steps are bijections."""

from revmom.optimizers.adam import Adam, adam, adamw
from revmom.optimizers.as_optax import ReversibleTransformation, as_optax
from revmom.optimizers.composed import averaged, clipped, preprocessed
from revmom.optimizers.grid import Grid
from revmom.optimizers.irreversible import (
  adamax,
  amsgrad,
  lamb,
  lars,
  lion,
  nesterov,
)
from revmom.optimizers.muon import Muon, muon
from revmom.optimizers.partition import Partition, partition
from revmom.optimizers.reversible import ReversibleOptimizer
from revmom.optimizers.rmsprop import Adagrad, RMSProp, adagrad, rmsprop
from revmom.optimizers.sgd import SGD, sgd
from revmom.optimizers.signum import Signum, signum
from revmom.optimizers.state import State

__all__ = [
  "SGD",
  "Adagrad",
  "Adam",
  "Grid",
  "Muon",
  "Partition",
  "RMSProp",
  "ReversibleOptimizer",
  "ReversibleTransformation",
  "Signum",
  "State",
  "adagrad",
  "adam",
  "adamax",
  "adamw",
  "amsgrad",
  "as_optax",
  "averaged",
  "clipped",
  "lamb",
  "lars",
  "lion",
  "muon",
  "nesterov",
  "partition",
  "preprocessed",
  "rmsprop",
  "sgd",
  "signum",
]
