"""Data whose density is learned, and flows that learn it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from densities.toys import TOYS
from revmom.models import (
  Flow,
  actnorm,
  affine,
  bits_per_dim,
  chain,
  dequantise,
  glow,
  linear,
  logit,
  mlp,
  nice,
  real_nvp,
  real_nvp_images,
  reversible_stack,
  sigmoid_log_scale,
)
from shared import image_data

NAMES = (*TOYS, *image_data.NAMES)
MODELS = ("real_nvp", "glow", "nice")
_POINTS = 50_000, 5000, 20_000  # for training, validation and tests
_DIGIT_LEVELS, _BYTE_LEVELS = 17, 256

# Bits per dimension of MNIST's test images, by models that are larger than the
# ones here and see the whole training file: real_nvp and glow as Grathwohl et
# al. (2019, "FFJORD", table 2) have them; nice from the 1980.50 nats of Dinh,
# Krueger & Bengio (2014, figure 3).
PUBLISHED = {
  ("mnist", "real_nvp"): 1.06,
  ("mnist", "glow"): 1.05,
  ("mnist", "nice"): 8 - 1980.50 / (784 * float(np.log(2))),
}


class Data(NamedTuple):
  """Points float32 [N, 2], or images of integers [N, *event]."""

  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray
  levels: int | None = None  # values that a pixel has; None for points
  image: tuple[int, int] | None = None  # H, W

  @property
  def event(self) -> tuple[int, ...]:
    """The shape of one x."""
    return self.train.shape[1:]

  @property
  def unit(self) -> str:
    """Of losses."""
    return "nats" if self.levels is None else "bits/dim"

  def floats(self, key: jax.Array, x: Any) -> jax.Array:
    """What a flow takes: points as they are, images with noise."""
    if self.levels is None:
      return jnp.asarray(x)
    return dequantise(key, x, self.levels)

  def losses(self, log_prob: jax.Array) -> jax.Array:
    """-log q in the unit of this data."""
    if self.levels is None:
      return -log_prob
    return bits_per_dim(log_prob, int(np.prod(self.event)), self.levels)


def load(name: str, data_dir: str | None, model: str, seed: int) -> Data:
  """Points drawn from a density, or a dataset of images.

  Images are [H, W, 1], or vectors [H W] for NICE.

  Raises:
    ValueError: a folder that is missing or not needed, or files that are none.
  """
  if name in TOYS:
    if data_dir is not None:
      raise ValueError(
        f"--data_dir={data_dir} holds no {name}: they are drawn. Leave it out, "
        "or read idx files with --data=mnist."
      )
    toy = TOYS[name]
    train, validation, test = (
      toy.sample(np.random.default_rng([seed, number]), count)
      for number, count in enumerate(_POINTS)
    )
    as_floats = lambda points: points.astype(np.float32)
    return Data(as_floats(train), as_floats(validation), as_floats(test))
  images = image_data.load(name, data_dir)
  levels = _DIGIT_LEVELS if name == "digits" else _BYTE_LEVELS

  def integers(values: np.ndarray) -> np.ndarray:
    shape = (-1,) if model == "nice" else (*values.shape[1:], 1)
    numbers = np.rint(values * (levels - 1)).astype(np.int32)
    return numbers.reshape(len(values), *shape)

  height, width = images.test_images.shape[1:]
  return Data(
    integers(images.train_images),
    integers(images.validation_images),
    integers(images.test_images),
    levels,
    (height, width),
  )


class Size(NamedTuple):
  """Of a flow."""

  depth: int  # couplings, or Glow's steps at each of its scales
  hidden: int  # units or channels inside each coupling's network
  scales: int  # of images


def points_flow(model: str, size: Size) -> Flow:
  """A flow of points [B, 2]."""
  hidden = (size.hidden, size.hidden)
  if model == "real_nvp":
    return real_nvp(size.depth, hidden)
  if model == "nice":
    return nice(size.depth, hidden)
  # Glow's step with vectors for the channels of one pixel.
  coupling = affine(mlp(hidden), log_scale=sigmoid_log_scale)
  step = chain(actnorm(), linear(), coupling)
  return Flow(reversible_stack(step, size.depth))


def images_flow(model: str, size: Size) -> Flow:
  """A flow of images [B, H, W, 1], or of vectors [B, D] for NICE."""
  if model == "nice":
    return nice(size.depth, (size.hidden,) * 5)
  if model == "real_nvp":
    flow = real_nvp_images(size.scales, size.hidden)
  else:
    flow = glow(size.scales, size.depth, size.hidden)
  return Flow(chain(logit(), flow.bijection), flow.base)
