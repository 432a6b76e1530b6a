"""RealNVP (Dinh, Sohl-Dickstein & Bengio 2017)."""

from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from revmom.models.flows.actnorm import actnorm
from revmom.models.flows.bijection import Bijection, chain
from revmom.models.flows.conditioner import Conditioner, convnet, mlp
from revmom.models.flows.coupling import (
  HALVES,
  affine,
  alternating,
  masked_affine,
  swapped,
)
from revmom.models.flows.flow import Flow
from revmom.models.flows.multi_scale import multi_scale, squeeze
from revmom.models.sizes import at_least


def checkerboard(x: jax.Array) -> np.ndarray:
  """1 where row + column is even, [H, W, 1]: figure 3."""
  height, width = x.shape[-3:-1]
  rows, columns = np.ogrid[:height, :width]
  return ((rows + columns + 1) % 2)[..., None]


def real_nvp(
  num_layers: int = 8,
  hidden: Sequence[int] = (128, 128),
  *,
  conditioner: Conditioner | None = None,
  reversible: bool = False,
) -> Flow:
  """Affine couplings of vectors, each half in turn.

  Args:
    num_layers: couplings, an even number.
    hidden: sizes of the hidden layers of each coupling's network.
    conditioner: another network than `mlp(hidden)`.
    reversible: `reversible_stack` in place of `stack`: activation memory that
      does not grow with depth, for gradients that take a third longer; for
      flows of hundreds of layers.  Parameters are the same.

  Returns:
    A flow of vectors [*batch, D], D >= 2.
  """
  network = mlp(hidden) if conditioner is None else conditioner
  coupling = partial(affine, network)
  return Flow(alternating(coupling, HALVES, num_layers, reversible))


def real_nvp_images(scales: int = 2, hidden: int = 64) -> Flow:
  """RealNVP of images: section 3.6.

  Each scale has three checkerboard couplings, a squeeze, three channel-wise
  couplings, and gives half of its channels as noise; the last scale has four
  checkerboard couplings instead.  The paper's residual networks with batch
  normalisation are Glow's convolutional network and `actnorm` here.

  Args:
    scales: how many there are, at least one.
    hidden: channels inside the networks.

  Returns:
    A flow of images [*batch, H, W, C] in floats, see `images`.

  Raises:
    ValueError: from its functions, if H or W is not divisible by
      2^(scales - 1).
  """
  at_least(1, scales=scales)
  network = convnet(hidden)
  masks = checkerboard, lambda x: 1 - checkerboard(x)
  partitions = HALVES, swapped(HALVES)
  spatial = [masked_affine(network, mask) for mask in masks]
  channels = [affine(network, partition) for partition in partitions]
  scale = chain(*_alternate(spatial, 3), squeeze(), *_alternate(channels, 3))
  last = chain(*_alternate(spatial, 4))
  return Flow(multi_scale(*[scale] * (scales - 1), last))


def _alternate(pair: Sequence[Bijection], count: int) -> list[Bijection]:
  """Couplings of either kind in turn, with an actnorm after each."""
  layers = []
  for index in range(count):
    layers += [pair[index % 2], actnorm(event_ndim=3)]
  return layers
