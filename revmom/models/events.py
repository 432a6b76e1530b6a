"""Arrays with batch axes before those of an event."""

import jax
import jax.numpy as jnp

from revmom.numerics import accumulator


def batch_shape(x: jax.Array, event_ndim: int) -> tuple[int, ...]:
  """The axes of x before those of an event."""
  if x.ndim < event_ndim:
    raise ValueError(
      f"got x of shape {x.shape}, expected [*batch, *event] with events of "
      f"{event_ndim} axes: [H, W, C] if 3, [D] if 1."
    )
  return x.shape[: x.ndim - event_ndim]


def event_sum(values: jax.Array, event_ndim: int) -> jax.Array:
  """Sum over the event's axes, in float32 or wider: [*batch]."""
  axes = tuple(range(len(batch_shape(values, event_ndim)), values.ndim))
  return jnp.sum(values, axes, dtype=accumulator(values.dtype))
