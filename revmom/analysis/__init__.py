"""What networks cost, and what they do to signals and gradients.

- `costs` counts what a function costs from its program, without running it;
- `gradients` measures signals, gradients, Jacobians and Hessians of networks;
- `closed_forms` has what theory says of them, and initializers that follow.
"""

from revmom.analysis.closed_forms import (
  convnet_notation,
  edge_of_chaos,
  initializers,
  variance_maps,
)
from revmom.analysis.closed_forms.batch_norm import (
  batch_norm_jacobian,
  batch_norm_product,
)
from revmom.analysis.closed_forms.bounds import (
  Comparison,
  ResidualBounds,
  chain_bound,
  compare,
  recurrence_bound,
  residual_bounds,
  residual_counterexample,
)
from revmom.analysis.closed_forms.residual_variance import (
  residual_backward_variance,
  residual_forward_variance,
  residual_sigma,
)
from revmom.analysis.costs.context import context_window
from revmom.analysis.costs.cost import Cost, Work, cost
from revmom.analysis.costs.scaling import Scaling, scaling
from revmom.analysis.gradients.coordinate_check import (
  CoordinateCheck,
  Problem,
  coordinate_check,
)
from revmom.analysis.gradients.curvature import LayerCurvature, layer_curvature
from revmom.analysis.gradients.find_gain import (
  Gain,
  find_gain,
  perturbation_growth,
)
from revmom.analysis.gradients.gradient_flow import GradientFlow, gradient_flow
from revmom.analysis.gradients.layer_spectrum import (
  LayerSpectra,
  layer_spectra,
)
from revmom.analysis.gradients.module_spectra import module_spectra
from revmom.analysis.gradients.norms import Norms
from revmom.analysis.gradients.recurrent_flow import (
  RecurrentFlow,
  recurrent_flow,
  recurrent_spectra,
)
from revmom.analysis.gradients.spectrum import Figure, Spectrum

__all__ = [
  "Comparison",
  "CoordinateCheck",
  "Cost",
  "Figure",
  "Gain",
  "GradientFlow",
  "LayerCurvature",
  "LayerSpectra",
  "Norms",
  "Problem",
  "RecurrentFlow",
  "ResidualBounds",
  "Scaling",
  "Spectrum",
  "Work",
  "batch_norm_jacobian",
  "batch_norm_product",
  "chain_bound",
  "compare",
  "context_window",
  "convnet_notation",
  "coordinate_check",
  "cost",
  "edge_of_chaos",
  "find_gain",
  "gradient_flow",
  "initializers",
  "layer_curvature",
  "layer_spectra",
  "module_spectra",
  "perturbation_growth",
  "recurrence_bound",
  "recurrent_flow",
  "recurrent_spectra",
  "residual_backward_variance",
  "residual_bounds",
  "residual_counterexample",
  "residual_forward_variance",
  "residual_sigma",
  "scaling",
  "variance_maps",
]
