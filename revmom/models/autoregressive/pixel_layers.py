"""What the recurrent layers of PixelRNN have in common.

Features are [H, W, B, F], or [B, F] of a single pixel.  They come in as many
groups as a pixel has channels: those of group c know of a pixel itself the
channels before c at most, and of c if "B" masks let them (van den Oord,
Kalchbrenner & Kavukcuoglu 2016, section 3.4).  States of earlier pixels are
known to all groups.

A step may be repeated for a pixel with more of its channels known.  So nothing
that it reads is overwritten by what it writes: states are kept of two rows, of
which the one above stays as it is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Place(NamedTuple):
  """A pixel, int32 [] both."""

  row: jax.Array
  column: jax.Array


class Layer(NamedTuple):
  """A layer, and its twin with a cache.

  Attributes:
    init: (key, D, dtype) -> params.
    masked: params -> those with zeros for weights that would see too much,
      which the others take.
    forward: (params, features [H, W, B, D], pixels [H, W, B, C]) ->
      [H, W, B, F].
    start: (params, W, B) -> the cache before the first pixel.
    step: (params, cache, place, features [B, D], images [B, H, W, C]) ->
      ([B, F], cache).
  """

  init: Callable[[jax.Array, int, Any], Any]
  masked: Callable[[Any], Any]
  forward: Callable[[Any, jax.Array, jax.Array], jax.Array]
  start: Callable[[Any, int, int], Any]
  step: Callable[..., tuple[jax.Array, Any]]


def two_rows(width: int, batch: int, like: Any) -> Any:
  """Zeros for two rows of trees of [B, F], with a column more on both sides."""
  return jax.tree.map(
    lambda leaf: jnp.zeros((2, width + 2, batch, leaf.shape[-1]), leaf.dtype),
    like,
  )


def put(rows: Any, place: Place, values: Any) -> Any:
  """Keeps what the pixel at a place has, in the stead of two rows above."""
  row, column = place.row % 2, place.column + 1
  return jax.tree.map(
    lambda rows, value: rows.at[row, column].set(value), rows, values
  )


def get(rows: Any, place: Place, up: int, right: int) -> Any:
  """What was put for a pixel nearby; zeros beyond the image."""
  row, column = (place.row - up) % 2, place.column + 1 + right
  return jax.tree.map(lambda rows: rows[row, column], rows)
