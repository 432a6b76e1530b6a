"""Networks whose outputs depend on earlier elements only, and their classes."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class CausalNetwork(NamedTuple):
  """A network each of whose outputs depends on the elements before it only.

  Events come with one batch axis, [B, *event], and outputs with an axis more,
  [B, *event, P].  Labels are [B] integers, or None for networks without
  classes.  Networks compute in the type of their parameters.

  Attributes:
    init: (key, inputs [B, *event], P) -> params, in the type of the inputs.
    forward: (params, inputs [B, *event], label) -> outputs [B, *event, P].
    start: (params, (B, *event), label) -> the cache before the first position.
    step: (params, cache, inputs [B, *event], position) -> the outputs of that
      position, [B, C, P] ([B, P] if events are [T]), and the cache after it.
      Positions count from 0 in order; an image's (i, j) is i W + j.  Of the
      inputs only those before the position, and the channels known of it, may
      matter.  With ordered channels it is called for a position once more for
      every channel, with the cache that the last call gave.
    event_ndim: axes of an event: 1 for tokens, 2 for sequences, 3 for images.
    ordered_channels: whether a channel sees those before it at its position.
      If not, channels are independent given the positions before.
    receptive_field: what an output sees of other positions, as offsets from
      its own: (-1,) is the one before, (-1, 1) above right.  None: not bounded.
  """

  init: Callable[[jax.Array, jax.Array, int], Any]
  forward: Callable[[Any, jax.Array, jax.Array | None], jax.Array]
  start: Callable[[Any, tuple[int, ...], jax.Array | None], Any]
  step: Callable[[Any, Any, jax.Array, jax.Array], tuple[jax.Array, Any]]
  event_ndim: int
  ordered_channels: bool = True
  receptive_field: frozenset[tuple[int, ...]] | None = None


def uncached(network: CausalNetwork) -> CausalNetwork:
  """The same network without a cache: each step is a whole forward pass.

  It takes a time that grows with the square of the number of elements; it is
  what cached generation is compared with, and serves a network that has
  nothing but `init` and `forward`.
  """

  def start(params, shape, label):
    return label

  def step(params, label, inputs, position):
    outputs = network.forward(params, inputs, label)
    positions, channels = positions_and_channels(inputs.shape[1:])
    outputs = outputs.reshape(len(inputs), positions, channels, -1)
    return lax.dynamic_index_in_dim(outputs, position, 1, False), label

  return network._replace(start=start, step=step)


def positions_and_channels(event: Sequence[int]) -> tuple[int, int]:
  """Number of positions of an event, and of channels at each.

  >>> positions_and_channels((4, 5, 3)), positions_and_channels((7,))
  ((20, 3), (7, 1))
  """
  if len(event) == 1:
    return event[0], 1
  return math.prod(event[:-1]), event[-1]


def class_embedding(
  table: jax.Array | None, label: jax.Array | None
) -> jax.Array | None:
  """Rows [B, F] of a table [classes, F], NaN for labels beyond it.

  Args:
    table: parameters of a network with classes, or None.
    label: [B] integers, or None.

  Returns:
    None for a network without classes.

  Raises:
    ValueError: if there is a label and no table, or a table and no label.
  """
  if table is None and label is None:
    return None
  if table is None:
    raise ValueError(
      "got a label, but the network has no classes: build it with num_classes."
    )
  if label is None:
    raise ValueError(
      f"got no label, expected integers in 0, ..., {len(table) - 1}, one for "
      "each event: the network has classes."
    )
  return (
    jnp.asarray(table)
    .at[label]
    .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
  )


def class_table(num_classes: int, size: int, dtype: Any) -> jax.Array | None:
  """Embeddings of classes that start at zero, or None without classes."""
  return jnp.zeros((num_classes, size), dtype) if num_classes else None


def add_class(drive: jax.Array, classes: jax.Array | None) -> jax.Array:
  """A drive [B, *positions, F] plus embeddings [B, F] at every position."""
  if classes is None:
    return drive
  positions = range(1, drive.ndim - 1)
  return drive + jnp.expand_dims(classes, positions).astype(drive.dtype)
