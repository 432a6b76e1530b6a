"""Reversible generators: exact likelihoods, exact inverses, samples."""

from revmom.models.actnorm import ActnormParams, actnorm
from revmom.models.bijection import Bijection, chain, stack
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
from revmom.models.flow import LOGISTIC, NORMAL, Base, Flow
from revmom.models.glow import glow, glow_step
from revmom.models.images import bits_per_dim, dequantise, logit, quantise
from revmom.models.linear import LinearParams, linear
from revmom.models.multi_scale import multi_scale, squeeze
from revmom.models.nice import ScalingParams, nice, scaling
from revmom.models.real_nvp import checkerboard, real_nvp, real_nvp_images
from revmom.models.reversible import reversible_stack

__all__ = [
  "EVEN_ODD",
  "HALVES",
  "LOGISTIC",
  "NORMAL",
  "ActnormParams",
  "Base",
  "Bijection",
  "Conditioner",
  "Flow",
  "LinearParams",
  "Partition",
  "ScalingParams",
  "actnorm",
  "additive",
  "affine",
  "bits_per_dim",
  "chain",
  "checkerboard",
  "convnet",
  "dequantise",
  "glow",
  "glow_step",
  "linear",
  "logit",
  "masked_affine",
  "mlp",
  "multi_scale",
  "nice",
  "quantise",
  "real_nvp",
  "real_nvp_images",
  "reversible_stack",
  "scaling",
  "sigmoid_log_scale",
  "squeeze",
  "stack",
  "swapped",
  "tanh_log_scale",
]
