"""Gradients of batches that are too large for the memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def accumulated(
  loss_fn: Callable[..., jax.Array], microbatches: int
) -> Callable[..., jax.Array]:
  """The mean of a loss over equal parts of a batch, one after the other.

  Its gradient is accumulated over the parts and keeps the activations of one
  of them, and so does its hypergradient.

  Args:
    loss_fn: (params, batch, *args) -> the mean of a loss over a batch.
    microbatches: how many parts; it divides the leading axis of every array of
      the batch.

  Returns:
    A function like `loss_fn`, of the whole batch.

  Raises:
    ValueError: when it is called, if the parts would not be equal.

  >>> import revmom
  >>> loss_fn = lambda x, batch: jnp.mean((x - batch) ** 2)
  >>> loss = revmom.accumulated(loss_fn, microbatches=3)
  >>> print(loss(jnp.zeros(()), jnp.arange(6.0)))
  9.166667
  """

  def mean(params: Any, batch: Any, *args: Any) -> jax.Array:
    parts = jax.tree.map(lambda array: _split(array, microbatches), batch)
    one = jax.checkpoint(lambda part: loss_fn(params, part, *args))
    return jnp.mean(lax.map(one, parts))

  return mean


def _split(array: Any, microbatches: int) -> jax.Array:
  shape = jnp.shape(array)
  if microbatches < 1 or not shape or shape[0] % microbatches:
    raise ValueError(
      f"a batch array of shape {shape} can't be cut into {microbatches} equal "
      "parts; choose a number of microbatches that divides the leading axis."
    )
  return jnp.reshape(
    jnp.asarray(array), (microbatches, shape[0] // microbatches, *shape[1:])
  )
