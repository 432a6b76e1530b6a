"""What an LSTM may have besides its equations, and the adjoints.

- Peepholes (Gers, Schraudolph & Schmidhuber 2002): the gates i and f see
  c_{t-1}, and o sees c_t, each times a weight for every cell.
- A projection (Sak, Senior & Beaufays 2014): h_t = (o tanh(c_t)) P.
- Layer normalisation (Ba, Kiros & Hinton 2016, equations 20-22) of x W, of h R,
  and inside of the tanh: tanh(norm(c_t) gain + bias).  Only the last is here;
  every cell has the first two.

Where a parameter is None, a function returns what it was given.
"""

from typing import Any

import jax
import jax.numpy as jnp

from revmom.cells.sequences.affine import gain_adjoint
from revmom.numerics import (
  Normalised,
  normalise,
  normalise_adjoint,
  outer_products,
  product,
  sigmoid,
  total,
)


def see_old_cell(params: Any, before: jax.Array, cell: jax.Array) -> jax.Array:
  """What goes into the gates [..., 4H], when i and f see c_{t-1}."""
  if params.peephole is None:
    return before
  of_input, of_forget, _ = params.peephole.astype(cell.dtype)
  nothing = jnp.zeros_like(cell)
  seen = [of_input * cell, of_forget * cell, nothing, nothing]
  return before + jnp.concatenate(seen, -1)


def see_old_cell_adjoint(
  params: Any, old_cell_bar: jax.Array, gate_bars: jax.Array
) -> jax.Array:
  """The adjoint of c_{t-1}, with what comes from i and f."""
  if params.peephole is None:
    return old_cell_bar
  of_input, of_forget, _ = params.peephole.astype(old_cell_bar.dtype)
  input_bar, forget_bar, _, _ = jnp.split(gate_bars, 4, -1)
  return old_cell_bar + (input_bar * of_input + forget_bar * of_forget)


def see_new_cell(params: Any, before: jax.Array, cell: jax.Array) -> jax.Array:
  """The output gate, from what goes into the gates and c_t."""
  _, _, of_output = params.peephole.astype(cell.dtype)
  return sigmoid(jnp.split(before, 4, -1)[2] + of_output * cell)


def peephole_gradient(
  params: Any, gate_bars: jax.Array, old_cell: jax.Array, cell: jax.Array
) -> dict[str, jax.Array]:
  """Of the peepholes [3, H]: what each saw, times its adjoint."""
  if params.peephole is None:
    return {}
  of_input, of_forget, of_output, _ = jnp.split(gate_bars, 4, -1)
  sums = [
    total(of_input * old_cell),
    total(of_forget * old_cell),
    total(of_output * cell),
  ]
  return {"peephole": jnp.stack(sums)}


def squash(params: Any, cell: jax.Array) -> tuple[jax.Array, Normalised | None]:
  """tanh(c_t), or tanh(norm(c_t) gain + bias) and norm(c_t)."""
  if params.cell_gain is None:
    return jnp.tanh(cell), None
  normalised = normalise(cell)
  return jnp.tanh(
    normalised.values * params.cell_gain.astype(cell.dtype)
    + params.cell_bias.astype(cell.dtype)
  ), normalised


def cell_adjoint(
  params: Any, factors: Any, exposed_bar: jax.Array
) -> jax.Array:
  """What the adjoint of o tanh(c_t) adds to that of c_t.

  That is equation (4) of `lstm`, through a normalisation if there is one, and
  with peepholes what comes through o.
  """
  bar = exposed_bar * factors.cell
  if params.cell_gain is not None:
    bar = normalise_adjoint(
      factors.normalised_cell, bar * params.cell_gain.astype(bar.dtype)
    )
  if params.peephole is not None:
    _, _, of_output = params.peephole.astype(bar.dtype)
    bar = bar + exposed_bar * jnp.split(factors.gates, 4, -1)[2] * of_output
  return bar


def squash_gradients(
  normalised: Normalised | None, bars: jax.Array
) -> dict[str, jax.Array]:
  """Of gain and bias inside of the tanh, from the adjoint of what it gets."""
  return {
    "cell_gain": gain_adjoint(normalised, bars),
    "cell_bias": total(bars),
  }


def project(params: Any, exposed: jax.Array) -> jax.Array:
  """h_t, from o tanh(c_t)."""
  if params.projection is None:
    return exposed
  return product(exposed, params.projection)


def project_adjoint(params: Any, hidden_bar: jax.Array) -> jax.Array:
  """The adjoint of o tanh(c_t), with the projection transposed."""
  if params.projection is None:
    return hidden_bar
  return product(hidden_bar, params.projection)


def projection_gradient(
  params: Any, exposed: jax.Array, hidden_bars: Any
) -> dict[str, jax.Array]:
  """Of P [H, P]."""
  if params.projection is None:
    return {}
  dtype = params.projection.dtype
  return {"projection": outer_products(exposed, hidden_bars, dtype)}
