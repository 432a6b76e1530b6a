"""What networks cost, and what they do to signals and gradients."""

from revmom.analysis import (
  convnet_notation,
  edge_of_chaos,
  initializers,
  variance_maps,
)
from revmom.analysis.batch_norm import batch_norm_jacobian, batch_norm_product
from revmom.analysis.context import context_window
from revmom.analysis.coordinate_check import (
  CoordinateCheck,
  Problem,
  coordinate_check,
)
from revmom.analysis.cost import Cost, Work, cost
from revmom.analysis.find_gain import Gain, find_gain, perturbation_growth
from revmom.analysis.residual_variance import (
  residual_backward_variance,
  residual_forward_variance,
  residual_sigma,
)
from revmom.analysis.scaling import Scaling, scaling

__all__ = [
  "CoordinateCheck",
  "Cost",
  "Gain",
  "Problem",
  "Scaling",
  "Work",
  "batch_norm_jacobian",
  "batch_norm_product",
  "context_window",
  "convnet_notation",
  "coordinate_check",
  "cost",
  "edge_of_chaos",
  "find_gain",
  "initializers",
  "perturbation_growth",
  "residual_backward_variance",
  "residual_forward_variance",
  "residual_sigma",
  "scaling",
  "variance_maps",
]
