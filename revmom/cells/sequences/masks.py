"""What holds a state back from step to step: lengths, zoneout, dropout.

Random masks are drawn from a key and the number of the step alone, so that the
backward pass draws them again instead of storing them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Rates(NamedTuple):
  """Probabilities of what is random; zero turns it off."""

  zoneout: tuple[float, ...]  # of each array of the carry
  dropout: float  # of the candidate


class Masks(NamedTuple):
  """Masks of one step, or of several with a leading axis; None if unused."""

  valid: jax.Array | None  # bool [..., B, 1]: within the sequence
  held: tuple[jax.Array, ...] | None  # of each array of the carry [..., B, H]
  kept: jax.Array | None  # 0 or 1 / (1 - rate), of the candidate [..., B, H]

  @property
  def factor(self) -> Any:
    """What the candidate is multiplied by."""
    return 1.0 if self.kept is None else self.kept

  def clear(self, values: jax.Array) -> jax.Array:
    """The values, zero beyond the ends of the sequences."""
    if self.valid is None:
      return values
    return jnp.where(self.valid, values, 0)


def rates(zoneout: Any, dropout: float, arrays: int) -> Rates:
  """Checks the rates that a user gave."""
  zoneouts = (
    (zoneout,) * arrays if isinstance(zoneout, (int, float)) else zoneout
  )
  result = Rates(tuple(float(rate) for rate in zoneouts), float(dropout))
  if len(result.zoneout) != arrays:
    raise ValueError(
      f"zoneout has {len(result.zoneout)} rates, but the carry has {arrays} "
      "arrays: give one rate, or one for each of them."
    )
  for name, rate in [
    *(("zoneout", rate) for rate in result.zoneout),
    ("dropout", result.dropout),
  ]:
    if not 0 <= rate < 1:
      raise ValueError(f"{name} is {rate}, but must be in [0, 1).")
  return result


def check_lengths(lengths: jax.Array | None, steps: int, batch: int) -> None:
  """Raises ValueError for what are no lengths of sequences."""
  if lengths is None:
    return
  if jnp.shape(lengths) != (batch,) or not jnp.issubdtype(
    jnp.result_type(lengths), jnp.integer
  ):
    raise ValueError(
      f"lengths must be {batch} integers, one for each sequence; got "
      f"{jnp.result_type(lengths)} of shape {jnp.shape(lengths)}."
    )
  if isinstance(lengths, jax.core.Tracer):
    return
  wrong = np.asarray(lengths)
  wrong = wrong[(wrong < 0) | (wrong > steps)]
  if wrong.size:
    raise ValueError(
      f"lengths must be between 0 and {steps}, the number of steps; got "
      f"{wrong.tolist()}."
    )


def draw(
  rates: Rates,
  key: jax.Array | None,
  lengths: jax.Array | None,
  times: jax.Array,
  like: Any,
) -> Masks:
  """The masks of some steps.

  Zoneout (Krueger et al. 2017) and dropout of the candidate, "recurrent
  dropout without memory loss" (Semeniuta, Severyn & Barth 2016, equation 9).
  Without a key, as in evaluation, zoneout takes its mean and dropout is off.

  Args:
    rates: of both.
    key: or None.
    lengths: int32 [B], or None.
    times: int32 [T], the numbers of the steps.
    like: a carry; its arrays [B, H] give shapes and types.
  """
  states = jax.tree.leaves(like)
  held, kept = None, None
  if any(rates.zoneout):
    held = tuple(
      _uniform_below(rate, key, times, number, state)
      for number, (rate, state) in enumerate(
        zip(rates.zoneout, states, strict=True)
      )
    )
  if rates.dropout and key is not None:
    candidate = states[-1]
    dropped = _uniform_below(rates.dropout, key, times, len(states), candidate)
    kept = (1 - dropped) / (1 - rates.dropout)
  within = None if lengths is None else valid(lengths, times)
  return Masks(within, held, kept)


def valid(lengths: jax.Array, times: jax.Array) -> jax.Array:
  """Which steps [T, B, 1] are within their sequences."""
  return times[:, None, None] < lengths[:, None].astype(times.dtype)


def _uniform_below(
  rate: float,
  key: jax.Array | None,
  times: jax.Array,
  number: int,
  state: jax.Array,
) -> jax.Array:
  """1 with a probability, else 0, [T, B, H]; that probability without a key."""
  if key is None:
    return jnp.full((len(times), *state.shape), rate, state.dtype)

  def one_step(time: jax.Array) -> jax.Array:
    stream = jax.random.fold_in(jax.random.fold_in(key, number), time)
    return jax.random.bernoulli(stream, rate, state.shape)

  return jax.vmap(one_step)(times).astype(state.dtype)


def hold(masks: Masks, old: Any, new: Any) -> Any:
  """The carry after a step: old where it is held, else new."""
  leaves: list[jax.Array] = jax.tree.leaves(new)
  before: list[jax.Array] = jax.tree.leaves(old)
  if masks.held is not None:
    leaves = [
      held * o + (1 - held) * n
      for held, o, n in zip(masks.held, before, leaves, strict=True)
    ]
  if masks.valid is not None:
    leaves = [
      jnp.where(masks.valid, n, o) for o, n in zip(before, leaves, strict=True)
    ]
  structure: Any = jax.tree.structure(new)
  return structure.unflatten(leaves)


def hold_adjoint(masks: Masks, bars: Any) -> tuple[Any, Any]:
  """Adjoints of the old and of the new carry, from the result's."""
  leaves: list[jax.Array] = jax.tree.leaves(bars)
  structure: Any = jax.tree.structure(bars)
  new, old = leaves, [jnp.zeros_like(bar) for bar in leaves]
  if masks.valid is not None:
    old = [jnp.where(masks.valid, 0, bar) for bar in leaves]
    new = [jnp.where(masks.valid, bar, 0) for bar in leaves]
  if masks.held is not None:
    old = [
      o + held * n for held, o, n in zip(masks.held, old, new, strict=True)
    ]
    new = [(1 - held) * n for held, n in zip(masks.held, new, strict=True)]
  return structure.unflatten(old), structure.unflatten(new)
