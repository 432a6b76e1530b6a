"""Images of integers, and every model of them by name."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.models import (
  Autoregressive,
  CausalNetwork,
  bernoulli,
  categorical,
  causal_transformer,
  diagonal_bilstm,
  gated_pixelcnn,
  language_model,
  pixel_mdrnn,
  pixelcnn,
  row_lstm,
  tokens,
  wavenet,
)
from shared import image_data

BINARY = "binary_mnist"
DATA = (*image_data.NAMES, BINARY)
CLASSES = 10
_DIGIT_LEVELS, _BYTE_LEVELS = 17, 256


class Data(NamedTuple):
  """Images int32 [N, H, W] in 0, ..., levels - 1, and labels int32 [N]."""

  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray
  train_labels: np.ndarray
  validation_labels: np.ndarray
  test_labels: np.ndarray
  levels: int

  @property
  def unit(self) -> str:
    """Of losses."""
    return "nats" if self.levels == 2 else "bits/dim"

  def in_unit(self, nats: Any) -> Any:
    """From the nats of a whole image."""
    if self.levels == 2:
      return nats
    return nats / (np.log(2) * self.test[0].size)


def load(name: str, data_dir: str | None) -> Data:
  """A dataset by name.

  The pixels of binary_mnist are 0 or 1, drawn once with the grey value as the
  probability of 1 (Salakhutdinov & Murray 2008, section 4.2).

  Raises:
    ValueError: a folder that is missing or not needed, or files that are none.
  """
  source = "mnist" if name == BINARY else name
  loaded = image_data.load(source, data_dir)
  levels = _DIGIT_LEVELS if name == "digits" else _BYTE_LEVELS
  rng = np.random.default_rng(0)

  def integers(images: np.ndarray) -> np.ndarray:
    if name == BINARY:
      return (rng.random(images.shape) < images).astype(np.int32)
    return np.rint(images * (levels - 1)).astype(np.int32)

  return Data(
    integers(loaded.train_images),
    integers(loaded.validation_images),
    integers(loaded.test_images),
    loaded.train_labels,
    loaded.validation_labels,
    loaded.test_labels,
    2 if name == BINARY else levels,
  )


class Size(NamedTuple):
  """Of a network."""

  hidden_size: int
  depth: int


# With some 50,000 parameters each for digits.
SIZES = {
  "pixelcnn": Size(48, 4),
  "gated_pixelcnn": Size(24, 4),
  "row_lstm": Size(24, 2),
  "diagonal_bilstm": Size(20, 2),
  "mdrnn": Size(64, 4),
  "wavenet": Size(32, 6),
  "lstm": Size(80, 1),
  "transformer": Size(48, 2),
}


def _network(name: str, size: Size, num_classes: int) -> CausalNetwork:
  width, depth = size
  match name:
    case "pixelcnn":
      return pixelcnn((7, *[3] * (depth - 1)), width, num_classes)
    case "gated_pixelcnn":
      return gated_pixelcnn((7, *[3] * (depth - 1)), width, num_classes)
    case "row_lstm":
      return row_lstm(width, depth, num_classes=num_classes)
    case "diagonal_bilstm":
      return diagonal_bilstm(width, depth, num_classes=num_classes)
    case "mdrnn":
      return pixel_mdrnn(width, depth, num_classes)
    case "wavenet":
      dilations = [2**block for block in range(depth)]
      return wavenet(dilations, 2, width, 2 * width, num_classes)
    case "lstm":
      return language_model(width, num_classes=num_classes)
    case "transformer":
      return causal_transformer(width, depth, 4, num_classes)
  raise ValueError(f"--model={name}; choose one of {', '.join(SIZES)}.")


class ImageModel(NamedTuple):
  """A density of images [B, H, W], whatever shape its network reads."""

  density: Autoregressive

  def events(self, images: Any) -> jax.Array:
    """Images [B, H, W] as [B, H, W, 1], or in raster order [B, T(, 1)]."""
    images = jnp.asarray(images)
    batch, height, width = images.shape
    shapes = {1: (-1,), 2: (-1, 1), 3: (height, width, 1)}
    return images.reshape(batch, *shapes[self.density.network.event_ndim])

  def init(self, key: jax.Array, images: Any) -> Any:
    """Parameters for images of this shape."""
    return self.density.init(key, self.events(images))

  def log_prob(self, params: Any, images: Any, label: Any) -> jax.Array:
    """[B] in nats."""
    return self.density.log_prob(params, self.events(images), label)

  def complete(
    self, key: jax.Array, params: Any, images: Any, rows: int, label: Any
  ) -> jax.Array:
    """Images of which the first rows are kept, and others drawn."""
    known = jnp.arange(images.shape[1])[:, None] < rows
    known = jnp.broadcast_to(known, images.shape)
    drawn = self.density.complete(
      key, params, self.events(images), self.events(known), label
    )
    return drawn.reshape(images.shape)


def make(
  name: str, levels: int, size: Size, conditioned: bool = False
) -> ImageModel:
  """A model by name.

  Raises:
    ValueError: sizes that it can't have.
  """
  network = _network(name, size, CLASSES if conditioned else 0)
  if network.event_ndim == 1:
    return ImageModel(Autoregressive(network, tokens(levels)))
  conditional = bernoulli() if levels == 2 else categorical(levels)
  return ImageModel(Autoregressive(network, conditional))


def independent(data: Data) -> float:
  """Test loss of a model that knows how often each pixel has each value."""
  counts = np.stack([(data.train == k).sum(0) + 1 for k in range(data.levels)])
  log_shares = np.log(counts / counts.sum(0))  # [levels, H, W]
  chosen = np.take_along_axis(log_shares, data.test, 0)
  return float(data.in_unit(-chosen.sum((1, 2)).mean()))
