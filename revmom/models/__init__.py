"""Generators with exact likelihoods, and the layers of deep networks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from revmom.models.affine_layer import Affine
from revmom.models.autoregressive.audio import mu_law, mu_law_inverse
from revmom.models.autoregressive.autoregressive import Autoregressive
from revmom.models.autoregressive.causal_network import CausalNetwork, uncached
from revmom.models.autoregressive.causal_transformer import causal_transformer
from revmom.models.autoregressive.conditional import (
  Conditional,
  bernoulli,
  categorical,
  gaussian,
  mixture_of_logistics,
)
from revmom.models.autoregressive.gated_pixelcnn import gated_pixelcnn
from revmom.models.autoregressive.language_model import language_model, tokens
from revmom.models.autoregressive.pixel_mdrnn import pixel_mdrnn
from revmom.models.autoregressive.pixel_rnn import diagonal_bilstm, row_lstm
from revmom.models.autoregressive.pixelcnn import pixelcnn
from revmom.models.autoregressive.wavenet import wavenet
from revmom.models.flows.actnorm import ActnormParams, actnorm
from revmom.models.flows.bijection import Bijection, chain, stack
from revmom.models.flows.conditioner import Conditioner, convnet, mlp
from revmom.models.flows.coupling import (
  EVEN_ODD,
  HALVES,
  Partition,
  additive,
  affine,
  masked_affine,
  sigmoid_log_scale,
  swapped,
  tanh_log_scale,
)
from revmom.models.flows.flow import LOGISTIC, NORMAL, Base, Flow
from revmom.models.flows.glow import glow, glow_step
from revmom.models.flows.images import bits_per_dim, dequantise, logit, quantise
from revmom.models.flows.linear import LinearParams, linear
from revmom.models.flows.multi_scale import multi_scale, squeeze
from revmom.models.flows.nice import ScalingParams, nice, scaling
from revmom.models.flows.real_nvp import checkerboard, real_nvp, real_nvp_images
from revmom.models.flows.reversible import reversible_stack
from revmom.models.layers import ugcnn
from revmom.models.layers.deep_supervision import (
  deeply_supervised,
  squared_losses,
)
from revmom.models.layers.layer import (
  Layer,
  batch_norm,
  convolution,
  dense,
  repeated,
)
from revmom.models.layers.residual import (
  fixup_residual,
  post_norm,
  pre_norm,
  residual,
)

if TYPE_CHECKING:
  from revmom.models.layers import nnx

__all__ = [
  "EVEN_ODD",
  "HALVES",
  "LOGISTIC",
  "NORMAL",
  "ActnormParams",
  "Affine",
  "Autoregressive",
  "Base",
  "Bijection",
  "CausalNetwork",
  "Conditional",
  "Conditioner",
  "Flow",
  "Layer",
  "LinearParams",
  "Partition",
  "ScalingParams",
  "actnorm",
  "additive",
  "affine",
  "batch_norm",
  "bernoulli",
  "bits_per_dim",
  "categorical",
  "causal_transformer",
  "chain",
  "checkerboard",
  "convnet",
  "convolution",
  "deeply_supervised",
  "dense",
  "dequantise",
  "diagonal_bilstm",
  "fixup_residual",
  "gated_pixelcnn",
  "gaussian",
  "glow",
  "glow_step",
  "language_model",
  "linear",
  "logit",
  "masked_affine",
  "mixture_of_logistics",
  "mlp",
  "mu_law",
  "mu_law_inverse",
  "multi_scale",
  "nice",
  "nnx",
  "pixel_mdrnn",
  "pixelcnn",
  "post_norm",
  "pre_norm",
  "quantise",
  "real_nvp",
  "real_nvp_images",
  "repeated",
  "residual",
  "reversible_stack",
  "row_lstm",
  "scaling",
  "sigmoid_log_scale",
  "squared_losses",
  "squeeze",
  "stack",
  "swapped",
  "tanh_log_scale",
  "tokens",
  "ugcnn",
  "uncached",
  "wavenet",
]


def __getattr__(name: str) -> Any:
  """`nnx`, which imports Flax, and only when it is used."""
  if name != "nnx":
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return import_module("revmom.models.layers.nnx")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
