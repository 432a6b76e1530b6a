"""Densities as products of conditionals, one for each element in order.

An event is a sequence [T, C], an image [H, W, C], or tokens [T].  Its elements
are ordered by position, rows of images from the top and each from the left,
and by channel within a position.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from revmom.models.autoregressive.causal_network import (
  CausalNetwork,
  positions_and_channels,
)
from revmom.models.autoregressive.conditional import Conditional
from revmom.models.events import batch_shape, event_sum
from revmom.numerics import accumulator, broadcasting


class Autoregressive(NamedTuple):
  r"""A density that is a product of conditionals.

  .. math:: \log p(x) = \sum_i \log p(x_i \mid x_1, \ldots, x_{i-1})

  Attributes:
    network: sees the elements before, as `conditional.encode` gives them.
    conditional: of an element, given the network's outputs for it.
  """

  network: CausalNetwork
  conditional: Conditional

  @broadcasting
  def init(self, key: jax.Array, x: ArrayLike) -> Any:
    """Parameters.

    Args:
      key: of the random weights.
      x: data [*batch, *event], of which only the shape matters, and the type
        where they are floats.  Parameters of another type come by casting:
        bfloat16 works.

    >>> from revmom.models import categorical
    >>> from revmom.models import wavenet
    >>> model = Autoregressive(wavenet(dilations=(1, 2)), categorical(16))
    >>> x = jnp.zeros((8, 20, 1), jnp.int32)
    >>> params = model.init(jax.random.key(0), x)
    >>> model.log_prob(params, x).shape
    (8,)
    >>> drawn = model.sample(jax.random.key(1), params, (3, 20, 1))
    >>> drawn.shape, drawn.dtype
    ((3, 20, 1), dtype('int32'))
    """
    inputs = self._inputs(jnp.asarray(x))
    return self.network.init(key, inputs, self.conditional.num_outputs)

  def log_prob(
    self, params: Any, x: ArrayLike, label: ArrayLike | None = None
  ) -> jax.Array:
    """log p(x), or log p(x | label), in nats.

    Args:
      params: from `init`.
      x: data [*batch, *event].
      label: integers, of the shape [*batch] or one that broadcasts to it, for
        a network with classes.

    Returns:
      [*batch], float32 or wider.

    Raises:
      ValueError: x has fewer axes than an event, or not the type of the
        conditional's elements; a label is missing, or not expected.
    """
    log_probs = self.element_log_probs(params, x, label)
    return event_sum(log_probs, self.network.event_ndim)

  @broadcasting
  def element_log_probs(
    self, params: Any, x: ArrayLike, label: ArrayLike | None = None
  ) -> jax.Array:
    """log p of each element given those before it: [*batch, *event].

    Arguments and errors are those of `log_prob`.
    """
    params, x = jax.tree.map(jnp.asarray, params), jnp.asarray(x)
    label = _labels(label, batch_shape(x, self.network.event_ndim))
    inputs = self._inputs(x)
    if not x.size:
      outputs = jnp.zeros((*x.shape, self.conditional.num_outputs))
      return self.conditional.log_prob(outputs.astype(_widest(params)), x)
    outputs = self.network.forward(params, inputs, label)
    return self.conditional.log_prob(outputs.reshape(*x.shape, -1), x)

  def sample(
    self,
    key: jax.Array,
    params: Any,
    shape: Sequence[int],
    label: ArrayLike | None = None,
  ) -> jax.Array:
    """Independent samples, element by element, in one `lax.scan`.

    Args:
      key: of the noise.
      params: from `init`.
      shape: of the result, [*batch, *event].
      label: integers that broadcast to [*batch], for a network with classes.

    Returns:
      x of that shape, int32 or floats; the same, to rounding, as with the
      `uncached` network.
    """
    return self._generate(key, params, tuple(shape), label, None)

  def complete(
    self,
    key: jax.Array,
    params: Any,
    x: ArrayLike,
    known: ArrayLike,
    label: ArrayLike | None = None,
  ) -> jax.Array:
    """Keeps elements that are known and draws each other one.

    Each is drawn from its conditional given all elements before it.  So where
    the known ones come first, such as the upper half of an image or the start
    of a clip, the result is a sample of p given them; known elements after an
    unknown one have no influence on it.

    Args:
      key: of the noise.
      params: from `init`.
      x: [*batch, *event]; values of unknown elements don't matter.
      known: booleans that broadcast to the shape of x.
      label: integers that broadcast to [*batch], for a network with classes.

    Returns:
      x with other values where it is not known, of its type.
    """
    x, known = jnp.asarray(x), jnp.asarray(known)
    if known.dtype != bool:
      raise ValueError(f"got known of {known.dtype}, expected booleans.")
    known = jnp.broadcast_to(known, x.shape)
    self.conditional.encode(x)  # which refuses wrong types
    return self._generate(key, params, x.shape, label, (x, known))

  def _inputs(self, x: jax.Array) -> jax.Array:
    """What the network sees of x: [B, *event]."""
    batch = batch_shape(x, self.network.event_ndim)
    inputs = self.conditional.encode(x)
    return inputs.reshape(math.prod(batch), *x.shape[len(batch) :])

  @broadcasting
  def _generate(
    self,
    key: jax.Array,
    params: Any,
    shape: tuple[int, ...],
    label: ArrayLike | None,
    given: tuple[jax.Array, jax.Array] | None,
  ) -> jax.Array:
    """Draws the elements in order; `given` has x and which of it to keep."""
    network, conditional = self.network, self.conditional
    params = jax.tree.map(jnp.asarray, params)
    like: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
    batch = batch_shape(like, network.event_ndim)
    event, size = shape[len(batch) :], math.prod(batch)
    if 0 in shape:
      outputs = jnp.zeros((*shape, conditional.num_outputs), _widest(params))
      drawn = conditional.sample(key, outputs)
      return drawn if given is None else given[0]
    positions, channels = positions_and_channels(event)
    at_once = 1 if network.ordered_channels else channels

    def draw(carry: Any, element: Any) -> tuple[Any, jax.Array]:
      cache, inputs = carry
      key, first, given = element
      outputs, cache = network.step(
        params, cache, inputs.reshape(size, *event), first // channels
      )
      outputs = outputs.reshape(size, channels, -1)
      outputs = lax.dynamic_slice_in_dim(outputs, first % channels, at_once, 1)
      drawn = conditional.sample(key, outputs)  # [B, at_once]
      if given is not None:
        x, known = given
        drawn = jnp.where(known, x, drawn.astype(x.dtype))
      encoded = conditional.encode(drawn).astype(inputs.dtype)
      inputs = lax.dynamic_update_slice_in_dim(inputs, encoded, first, 1)
      return (cache, inputs), drawn

    def elements_first(x: jax.Array) -> jax.Array:
      return jnp.moveaxis(x.reshape(size, -1, at_once), 1, 0)

    cache = network.start(params, (size, *event), _labels(label, batch))
    inputs = jnp.zeros((size, positions * channels), _widest(params))
    firsts = jnp.arange(0, positions * channels, at_once)
    keys = jax.random.split(key, len(firsts))
    given = jax.tree.map(elements_first, given)
    _, drawn = lax.scan(draw, (cache, inputs), (keys, firsts, given))
    return jnp.moveaxis(drawn, 0, 1).reshape(shape)


def _labels(
  label: ArrayLike | None, batch: tuple[int, ...]
) -> jax.Array | None:
  """Labels as [B]."""
  if label is None:
    return None
  label = jnp.asarray(label)
  if not jnp.issubdtype(label.dtype, jnp.integer):
    raise ValueError(f"got labels of {label.dtype}, expected integers.")
  if label.ndim > len(batch):
    raise ValueError(
      f"got labels of shape {label.shape}, expected one for each event of the "
      f"batch {batch}."
    )
  return jnp.broadcast_to(label, batch).reshape(-1)


def _widest(params: Any) -> jnp.dtype:
  """The widest type of the parameters, float32 or wider."""
  types = [accumulator(leaf.dtype) for leaf in jax.tree.leaves(params)]
  return max(types, key=lambda dtype: dtype.itemsize)
