"""Whole training runs as bijections, and the gradients through them."""

from revmom.training.microbatches import accumulated
from revmom.training.receipt import Fingerprint, Receipt, fingerprint
from revmom.training.stepper import Stepper
from revmom.training.train import Rewound, Run, RunState, rewind, train

__all__ = [
  "Fingerprint",
  "Receipt",
  "Rewound",
  "Run",
  "RunState",
  "Stepper",
  "accumulated",
  "fingerprint",
  "rewind",
  "train",
]
