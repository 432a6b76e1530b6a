"""Gated recurrences over sequences, whose states are restored, not kept.

Time is the axis of layers.  The state of a cell is in two halves that change in
turn, each gated by what is computed from the other one, which is what makes a
step reversible (MacKay, Vicol, Ba & Grosse 2018).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.depth.gates import Gate
from revmom.depth.layer import Updates
from revmom.depth.scan import reversible_scan
from revmom.exact.tracing import concrete


class HalfParams(NamedTuple):
  """Parameters of one half of a cell, of H / 2 units, with G gates."""

  input_weights: jax.Array  # [D, G H / 2]
  recurrent_weights: jax.Array  # from the other half [H / 2, G H / 2]
  # From the reset half [H / 2, H / 2], if there is a reset gate, for which
  # the columns of the recurrent weights leave the candidate out.
  candidate_weights: jax.Array | None
  bias: jax.Array  # [G H / 2]


Halves = tuple[HalfParams, HalfParams]


class Recurrence(NamedTuple):
  """A cell of two halves.

  Attributes:
    name: in messages.
    updates: (params, gate, inputs, is_there) -> the equations of a step.
    hidden: the places in the carry of the halves of the output.
    arrays: in the carry.
  """

  name: str
  updates: Callable[..., Updates]
  hidden: tuple[int, int]
  arrays: int

  def hidden_of(self, carry: tuple[jax.Array, ...]) -> jax.Array:
    """The output [B, H] of a carry."""
    return jnp.concatenate([carry[place] for place in self.hidden], -1)

  def initial_carry(self, params: Halves, batch: int) -> tuple[jax.Array, ...]:
    """Zeros, [B, H / 2] each."""
    shape = batch, params[0].recurrent_weights.shape[0]
    dtype = params[0].bias.dtype
    return tuple(jnp.zeros(shape, dtype) for _ in range(self.arrays))

  def apply(
    self,
    params: Halves,
    xs: jax.Array,
    initial_carry: tuple[jax.Array, ...] | None = None,
    *,
    lengths: jax.Array | None = None,
    gate: Gate | None = None,
    outputs: Callable[[jax.Array], Any] | None = None,
    fraction_bits: int | None = None,
    integer: str = "int32",
  ) -> tuple[Any, tuple[jax.Array, ...]]:
    """All steps; of the states, gradients need the last one and forgotten bits.

    Args:
      params: of `init`.
      xs: [T, B, D].
      initial_carry: arrays [B, H / 2]; zero by default.
      lengths: int32 [B], the lengths of the sequences.  Beyond them the carry
        stays what it is, outputs are zero, and it does not matter what the
        inputs hold.
      gate: how many bits gates forget at most, `Gate()` by default.
      outputs: hidden state [B, H] -> what is kept of a step, by default all of
        it: outputs take T times their size in any case.
      fraction_bits: of `reversible_scan`.
      integer: of `reversible_scan`.

    Returns:
      The outputs [T, B, H], or what `outputs` makes of each, and the carry
      after the last step.

    Raises:
      ValueError: shapes do not fit.
    """
    lengths = None if lengths is None else jnp.asarray(lengths)
    self._check(params, xs, initial_carry, lengths)
    steps, batch, _ = xs.shape
    carry = initial_carry or self.initial_carry(params, batch)
    there = None
    if lengths is not None:
      there = jnp.arange(steps)[:, None] < lengths[None]
    only = lambda layer, array: _only_there(layer[1], array)

    def read(layer, carry):
      hidden = only(layer, self.hidden_of(carry))
      return hidden if outputs is None else outputs(hidden)

    after, kept = reversible_scan(
      self.updates(
        params,
        gate or Gate(),
        inputs=lambda layer: only(layer, layer[0]),
        is_there=None if lengths is None else lambda layer: layer[1],
      ),
      carry,
      (xs, there),
      outputs=read,
      fraction_bits=fraction_bits,
      integer=integer,
    )
    return kept, after

  def _check(self, params, xs, carry, lengths) -> None:
    size, _ = params[0].input_weights.shape
    if xs.ndim != 3 or xs.shape[2] != size or not xs.shape[0]:
      raise ValueError(
        f"{self.name}: inputs have the shape {xs.shape}, but must be "
        f"[T, B, {size}] for these parameters, with at least one step."
      )
    half = xs.shape[1], params[0].recurrent_weights.shape[0]
    if carry is not None and [a.shape for a in carry] != [half] * self.arrays:
      raise ValueError(
        f"{self.name}: the carry has the shapes {[a.shape for a in carry]}, "
        f"but must have {self.arrays} arrays {half}."
      )
    if lengths is not None and not (
      lengths.shape == xs.shape[1:2]
      and jnp.issubdtype(lengths.dtype, jnp.integer)
    ):
      raise ValueError(
        f"{self.name}: lengths must be {xs.shape[1]} integers, one for each "
        f"sequence; got {lengths.dtype} of shape {lengths.shape}."
      )
    known = None if lengths is None else concrete(lengths)
    if known is not None and ((known < 0) | (known > len(xs))).any():
      raise ValueError(
        f"{self.name}: lengths must lie between 0 and {len(xs)}, the number of "
        f"steps; got {known.min()} to {known.max()}."
      )


def init_half(
  key: jax.Array,
  input_size: int,
  size: int,
  gates: int,
  reset: bool,
  dtype: jax.typing.DTypeLike,
) -> HalfParams:
  """Weights uniform within 1 / sqrt(H), no biases."""
  keys = jax.random.split(key, 3)
  bound = (2 * size) ** -0.5
  uniform = lambda key, *shape: jax.random.uniform(
    key, shape, dtype, -bound, bound
  )
  return HalfParams(
    uniform(keys[0], input_size, gates * size),
    uniform(keys[1], size, (gates - reset) * size),
    uniform(keys[2], size, size) if reset else None,
    jnp.zeros(gates * size, dtype),
  )


def half_of(hidden_size: int, input_size: int) -> int:
  """Units of a half; raises ValueError for sizes that are none."""
  sizes = {"input_size": input_size, "hidden_size": hidden_size}
  for name, size in sizes.items():
    if not isinstance(size, int) or size < 1:
      raise ValueError(f"{name}={size!r}; give at least 1, an integer.")
  if hidden_size % 2:
    raise ValueError(
      f"hidden_size={hidden_size}; give an even number, as the state of a "
      "reversible cell is in two halves."
    )
  return hidden_size // 2


def _only_there(there: jax.Array | None, array: jax.Array) -> jax.Array:
  return array if there is None else jnp.where(there[:, None], array, 0)


def held(is_there: Callable | None, change: Callable) -> Callable:
  """A change of gate and increment, or none where a sequence has ended."""
  if is_there is None:
    return change

  def masked(layer, carry):
    gate, increment = change(layer, carry)
    there = is_there(layer)[:, None]
    return jnp.where(there, gate, 1), jnp.where(there, increment, 0)

  return masked
