"""Whole training runs as bijections, and the gradients through them."""

from revmom.training import ledger
from revmom.training.ledger import (
  Ledger,
  gaussian_entropy,
  parabola_bound,
  sgd_curvature,
)
from revmom.training.microbatches import accumulated
from revmom.training.receipt import Fingerprint, Receipt, fingerprint
from revmom.training.stepper import Stepper
from revmom.training.tangent import Outcome, train_jvp
from revmom.training.train import Rewound, Run, RunState, rewind, train

__all__ = [
  "Fingerprint",
  "Ledger",
  "Receipt",
  "Outcome",
  "Rewound",
  "Run",
  "RunState",
  "Stepper",
  "accumulated",
  "fingerprint",
  "gaussian_entropy",
  "ledger",
  "parabola_bound",
  "rewind",
  "sgd_curvature",
  "train",
  "train_jvp",
]
