"""Images at several scales: space into channels, and noise taken out early."""

from typing import Any

import jax

from revmom.models.events import batch_shape
from revmom.models.flows.bijection import Bijection, no_change
from revmom.models.flows.coupling import HALVES


def squeeze() -> Bijection:
  """[H, W, C] to [H/2, W/2, 4C]: each 2x2 block becomes one pixel's channels.

  Dinh, Sohl-Dickstein & Bengio (2017), section 3.6.  The channels are those of
  the block's first row, then of its second.

  Returns:
    A bijection without parameters.

  Raises:
    ValueError: if H or W is odd.
  """

  def init(key: jax.Array, x: jax.Array) -> tuple[()]:
    return ()

  def forward(params: tuple[()], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    batch = batch_shape(x, 3)
    height, width, channels = x.shape[-3:]
    if height % 2 or width % 2:
      raise ValueError(
        f"squeeze got images of {height} x {width}, expected even sides: pad "
        "or crop them, or use fewer levels (each halves both sides)."
      )
    blocks = x.reshape(-1, height // 2, 2, width // 2, 2, channels)
    y = blocks.transpose(0, 1, 3, 2, 4, 5)
    shape = height // 2, width // 2, 4 * channels
    return y.reshape(*batch, *shape), no_change(x, 3)

  def inverse(params: tuple[()], y: jax.Array) -> tuple[jax.Array, jax.Array]:
    batch = batch_shape(y, 3)
    height, width, channels = y.shape[-3:]
    blocks = y.reshape(-1, height, width, 2, 2, channels // 4)
    x = blocks.transpose(0, 1, 3, 2, 4, 5)
    shape = 2 * height, 2 * width, channels // 4
    return x.reshape(*batch, *shape), no_change(y, 3)

  return Bijection(init, forward, inverse)


def multi_scale(*levels: Bijection) -> Bijection:
  """Levels, each on half of the channels that the one before gives.

  Dinh, Sohl-Dickstein & Bengio (2017), equations 13 to 16: the second half of
  each level's channels is noise already, z_1, z_2, ...; the last level gives
  all of its channels.

  Args:
    *levels: bijections of images.

  Returns:
    A bijection from an image to a tuple of noise arrays, one for each level;
    its parameters are a tuple of the levels'.
  """
  if not levels:
    raise ValueError("multi_scale() got no levels, expected one or more.")

  def init(key, x):
    all_params: list[Any] = []
    keys = jax.random.split(key, len(levels))
    for level, its_key in zip(levels, keys, strict=True):
      all_params.append(level.init(its_key, x))
      y, _ = level.forward(all_params[-1], x)
      x, _ = HALVES.split(y)
    return tuple(all_params)

  def forward(params, x):
    noise: list[jax.Array] = []
    total = no_change(x, 3)
    for level, its_params in zip(levels[:-1], params[:-1], strict=True):
      y, log_det = level.forward(its_params, x)
      x, z = HALVES.split(y)
      noise.append(z)
      total = total + log_det
    z, log_det = levels[-1].forward(params[-1], x)
    return (*noise, z), total + log_det

  def inverse(params, noise):
    x, total = levels[-1].inverse(params[-1], noise[-1])
    early = zip(levels[:-1], params[:-1], noise[:-1], strict=True)
    for level, its_params, z in reversed(list(early)):
      x, log_det = level.inverse(its_params, HALVES.join(x, z))
      total = total + log_det
    return x, total

  return Bijection(init, forward, inverse)
