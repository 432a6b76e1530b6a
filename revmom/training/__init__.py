"""Whole training runs as bijections, and the gradients through them."""

from revmom.training.train import Rewound, Run, RunState, rewind, train

__all__ = ["Rewound", "Run", "RunState", "rewind", "train"]
