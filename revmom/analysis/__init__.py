"""What networks cost, and what they do to signals and gradients."""

from revmom.analysis import convnet_notation
from revmom.analysis.context import context_window
from revmom.analysis.cost import Cost, Work, cost
from revmom.analysis.scaling import Scaling, scaling

__all__ = [
  "Cost",
  "Scaling",
  "Work",
  "context_window",
  "convnet_notation",
  "cost",
  "scaling",
]
