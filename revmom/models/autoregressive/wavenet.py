r"""WaveNet: dilated causal convolutions (van den Oord et al. 2016).

"WaveNet: a generative model for raw audio".  Block l has dilation
:math:`d_l`, and with :math:`h^{(0)}` a causal convolution of what came before,

.. math::
  z_t &= \tanh\Big(\sum_{j=0}^{k-1} W_j^\top h_{t - j d} + V_y\Big)
    \odot \sigma\Big(\sum_{j=0}^{k-1} W'^\top_j h_{t - j d} + V'_y\Big) \\
  h'_t &= h_t + R^\top z_t, \qquad s_t = s_t + S^\top z_t

(equations 2 and 3; biases not written), y being the class.  The outputs are
those of :math:`\text{relu} \to 1 \times 1 \to \text{relu} \to 1 \times 1` on
the sum s of all blocks (section 2.4).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.models.affine_layer import Affine
from revmom.models.autoregressive.causal_convolution import (
  Offset,
  convolve,
  gate,
  init_affine,
  pointwise,
  reach,
  read_out,
  taps,
)
from revmom.models.autoregressive.causal_network import (
  CausalNetwork,
  add_class,
  class_embedding,
  class_table,
)
from revmom.models.sizes import at_least
from revmom.numerics import accumulator

DOUBLING = tuple(2**i for i in range(10))


class Block(NamedTuple):
  """Weights of one block."""

  gated: Affine  # [k, R, 2 R]: the filter's and the gate's
  out: Affine  # [R, R + S]: to the next block and to the sum; [R, S] at last
  classes: jax.Array | None  # [classes, 2 R]


class Params(NamedTuple):
  """Weights of a WaveNet."""

  first: Affine  # [k, C, R]
  blocks: tuple[Block, ...]
  hidden: Affine  # [S, S]
  last: Affine  # [S, C P]


class Cache(NamedTuple):
  """What blocks saw at earlier positions, in queues one after the other."""

  queues: jax.Array  # [(k - 1) (d_1 + d_2 + ...), B, R]
  classes: tuple[jax.Array | None, ...]  # of each block [B, 2 R]


def wavenet(
  dilations: Sequence[int] = DOUBLING,
  kernel_size: int = 2,
  residual: int = 32,
  skip: int = 64,
  num_classes: int = 0,
) -> CausalNetwork:
  """A WaveNet for sequences [T, C].

  Channels are independent given the samples before.  Generation keeps for each
  block a queue of what it saw (Le Paine et al. 2016): a step computes one
  position of each block, and costs the same however far the network sees.

  Args:
    dilations: of each block, in order; all ones are plain causal convolutions.
    kernel_size: k, taps of a convolution.
    residual: R, channels between blocks.
    skip: S, channels of the sum of all blocks.
    num_classes: 0 for a network without classes.

  Returns:
    A `CausalNetwork` of events [T, C].

  Raises:
    ValueError: a size is too small, or there are no blocks.

  >>> network = wavenet(dilations=(1, 2, 4), kernel_size=2)
  >>> len(network.receptive_field), min(network.receptive_field)
  (9, (-9,))
  """
  dilations = tuple(dilations)
  if not dilations or min(dilations) < 1:
    raise ValueError(
      f"got dilations={dilations}, expected one or more, each 1 or more."
    )
  at_least(2, kernel_size=kernel_size)
  at_least(1, residual=residual, skip=skip)
  at_least(0, num_classes=num_classes)

  def init(key, inputs, num_outputs):
    sizes = (kernel_size, residual, skip, num_classes)
    return _init(key, inputs, num_outputs, len(dilations), *sizes)

  def forward(params, inputs, label):
    _check_inputs(params, inputs)
    before = ((kernel_size, 0),)
    # The result for the position after the last has no use.
    h = convolve(params.first, inputs, before)[:, :-1]
    total = jnp.zeros((), h.dtype)
    for dilation, block in zip(dilations, params.blocks, strict=True):
      before = (((kernel_size - 1) * dilation, 0),)
      drive = convolve(block.gated, h, before, dilation)
      classes = class_embedding(block.classes, label)
      h, skipped = _block(block, h, drive, classes, skip)
      total = total + skipped
    outputs = read_out(params.hidden, params.last, total)
    return outputs.reshape(*inputs.shape, -1)

  lags = np.arange(kernel_size - 1, 0, -1) * np.array(dilations)[:, None]
  sizes = lags[:, 0]  # of the queues
  begins = np.cumsum(sizes) - sizes

  def start(params, shape, label):
    dtype = accumulator(params.first.weights.dtype)
    queues = jnp.zeros((int(sizes.sum()), shape[0], residual), dtype)
    embedded = (class_embedding(b.classes, label) for b in params.blocks)
    return Cache(queues, tuple(embedded))

  def step(params, cache, inputs, position):
    recent = _recent(inputs, position, kernel_size)
    h = taps(params.first, recent)
    slots = begins[:, None] + (position - lags) % sizes[:, None]
    earlier = cache.queues[slots]  # [blocks, k - 1, B, R]
    seen, total = [], jnp.zeros((), h.dtype)
    for past, block, classes in zip(
      earlier, params.blocks, cache.classes, strict=True
    ):
      seen.append(h)
      drive = taps(block.gated, [*past, h])
      h, skipped = _block(block, h, drive, classes, skip)
      total = total + skipped
    queues = cache.queues.at[begins + position % sizes].set(jnp.stack(seen))
    outputs = read_out(params.hidden, params.last, total)
    outputs = outputs.reshape(*inputs.shape[::2], -1)  # [B, C, P]
    return outputs, cache._replace(queues=queues)

  seen = receptive_field(dilations, kernel_size)
  return CausalNetwork(init, forward, start, step, 2, False, seen)


def receptive_field(
  dilations: Sequence[int], kernel_size: int
) -> frozenset[Offset]:
  """The samples that an output sees, as offsets from its own.

  With doubling dilations 1, ..., 2^(n-1) and k = 2 they are the 2^n + 1 before.
  """
  seen: frozenset[Offset] = frozenset({(-1,)})
  for dilation in (1, *dilations):
    seen = reach(seen, [(-dilation * j,) for j in range(kernel_size)])
  return seen


def _init(
  key: jax.Array,
  inputs: jax.Array,
  num_outputs: int,
  depth: int,
  kernel_size: int,
  residual: int,
  skip: int,
  num_classes: int,
) -> Params:
  channels, dtype = inputs.shape[-1], inputs.dtype
  first, hidden, last, *keys = jax.random.split(key, 3 + 2 * depth)

  def block(number: int) -> Block:
    outputs = skip if number == depth - 1 else residual + skip
    gated = (kernel_size, residual, 2 * residual)
    return Block(
      init_affine(keys[2 * number], gated, dtype),
      init_affine(keys[2 * number + 1], (residual, outputs), dtype),
      class_table(num_classes, 2 * residual, dtype),
    )

  return Params(
    init_affine(first, (kernel_size, channels, residual), dtype),
    tuple(map(block, range(depth))),
    init_affine(hidden, (skip, skip), dtype, fan_in=skip * depth),
    init_affine(last, (skip, channels * num_outputs), dtype),
  )


def _block(
  block: Block,
  h: jax.Array,
  drive: jax.Array,
  classes: jax.Array | None,
  skip: int,
) -> tuple[jax.Array, jax.Array]:
  """What the next block sees, [..., R], and a term of the sum, [..., S]."""
  out = pointwise(block.out, gate(add_class(drive, classes)))
  residual, skipped = out[..., :-skip], out[..., -skip:]
  # The last block has nothing to tell a next one.
  return (h + residual if residual.shape[-1] else h), skipped


def _recent(
  inputs: jax.Array, position: jax.Array, count: int
) -> list[jax.Array]:
  """The samples [B, C] before a position, zeros before the first."""
  earlier = position - jnp.arange(count, 0, -1)
  samples = inputs[:, jnp.maximum(earlier, 0)]  # [B, count, C]
  samples = jnp.where((earlier >= 0)[:, None], samples, 0)
  return list(jnp.moveaxis(samples, 1, 0))


def _check_inputs(params: Params, inputs: jax.Array) -> None:
  channels = params.first.weights.shape[1]
  if inputs.ndim != 3 or inputs.shape[-1] != channels:
    raise ValueError(
      f"got inputs of shape {inputs.shape}, expected [B, T, {channels}], "
      "which the parameters are for."
    )
