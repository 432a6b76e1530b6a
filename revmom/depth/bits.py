"""How many bits gates forget."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from revmom.depth import gates
from revmom.depth.layer import Updates, check
from revmom.depth.scan import grid_bits, run


def bits_kept(
  updates: Updates,
  arrays: Sequence[jax.Array],
  layers: Any,
  *,
  fraction_bits: int | None = None,
  integer: str = "int32",
) -> tuple[jax.Array | None, ...]:
  r"""Bits that `reversible_scan` keeps of what gates forget of each array.

  .. math:: \sum_{t, i} \log_2 (1 / \mathrm{gate}_{t, i})

  Args:
    updates: the equations, with a `Gate` among their decays.
    arrays: the carry.
    layers: a pytree of arrays [depth, ...].
    fraction_bits: of `reversible_scan`.
    integer: of `reversible_scan`.

  Returns:
    A float32 [] for each array with a `Gate`, more than its budget if that was
    too small; None for the others.

  Raises:
    ValueError: see `reversible_scan`.

  >>> from revmom.depth import Gate, Updates
  >>> half = lambda layer, carry: (0.5 + 0 * layer["x"], layer["x"])
  >>> updates = Updates((half,), (Gate(3),))
  >>> (bits,) = bits_kept(updates, [jnp.ones(4)], {"x": jnp.ones((100, 4))})
  >>> print(f"{bits:.1f}")
  400.0
  """
  carry = tuple(map(jnp.asarray, arrays))
  depth = check(updates, carry, layers)
  bits = grid_bits(fraction_bits, integer)
  names = [f"z{i}" for i in range(len(carry))]
  if not depth:
    return (None,) * len(carry)
  after = run(updates, carry, layers, None, bits, integer, None)[2].leaf
  kept = gates.bits_kept_in(after)
  return tuple(kept.get(name) for name in names)
