"""Generators with exact likelihoods, and the layers of deep networks."""

from revmom.models import ugcnn
from revmom.models.actnorm import ActnormParams, actnorm
from revmom.models.audio import mu_law, mu_law_inverse
from revmom.models.autoregressive import Autoregressive, CausalNetwork, uncached
from revmom.models.bijection import Bijection, chain, stack
from revmom.models.causal_transformer import causal_transformer
from revmom.models.conditional import (
  Conditional,
  bernoulli,
  categorical,
  gaussian,
  mixture_of_logistics,
)
from revmom.models.conditioner import Conditioner, convnet, mlp
from revmom.models.coupling import (
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
from revmom.models.deep_supervision import deeply_supervised, squared_losses
from revmom.models.flow import LOGISTIC, NORMAL, Base, Flow
from revmom.models.gated_pixelcnn import gated_pixelcnn
from revmom.models.glow import glow, glow_step
from revmom.models.images import bits_per_dim, dequantise, logit, quantise
from revmom.models.language_model import language_model, tokens
from revmom.models.layer import Layer, batch_norm, convolution, dense, repeated
from revmom.models.linear import LinearParams, linear
from revmom.models.multi_scale import multi_scale, squeeze
from revmom.models.nice import ScalingParams, nice, scaling
from revmom.models.pixel_mdrnn import pixel_mdrnn
from revmom.models.pixel_rnn import diagonal_bilstm, row_lstm
from revmom.models.pixelcnn import pixelcnn
from revmom.models.real_nvp import checkerboard, real_nvp, real_nvp_images
from revmom.models.residual import fixup_residual, post_norm, pre_norm, residual
from revmom.models.reversible import reversible_stack
from revmom.models.wavenet import wavenet

__all__ = [
  "EVEN_ODD",
  "HALVES",
  "LOGISTIC",
  "NORMAL",
  "ActnormParams",
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
