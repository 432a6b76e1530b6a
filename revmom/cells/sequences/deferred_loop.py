"""The loop that remains of a step, and its derivative with taps.

Weights have no gradient inside of the loop.  Their products get taps of zeros,
whose adjoints are those of the products; the gradient of the weights is then
one product for all steps.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from revmom.cells.sequences.step_program import StepProgram, Tap
from revmom.jacobian.program import equations as program
from revmom.jacobian.program.equations import Variable


@jax.custom_jvp
def _tapped(tap: jax.Array, value: jax.Array) -> jax.Array:
  """value + tap for a tap of zeros, which need not be read."""
  return value


_tapped.defjvp(
  lambda primals, tangents: (_tapped(*primals), tangents[0] + tangents[1])
)


def recurrence(
  traced: StepProgram,
  steps: int,
  fixed: list[jax.Array],
  driven: list[jax.Array],
  carry: list[jax.Array],
) -> tuple[list[jax.Array], list[jax.Array]]:
  """Outputs of the loop and the final carry.

  Args:
    traced: the step.
    steps: T.
    fixed: what the loop reads that is the same in all steps; weights among it
      get their gradients by equation (1) of `deferred`.
    driven: what it reads of each step [T, ...].
    carry: before the first step.
  """
  place = {v: k for k, v in enumerate(traced.read_fixed)}

  def loop(
    fixed: list, changed: dict, driven: Any, taus: dict, carry: Any
  ) -> Any:
    """Weights have no gradient in here, the rest of fixed as changed."""
    weights = [fixed[place[tap.weights]] for tap in traced.taps]
    untapped = [changed.get(place[v], fixed[place[v]]) for v in traced.untapped]
    return _loop(traced, steps, weights, untapped, driven, taus, carry)

  @jax.custom_vjp
  def run(fixed: Any, driven: Any, carry: Any) -> Any:
    results, _ = loop(fixed, {}, driven, {}, carry)
    return results

  def forward(*primals: Any) -> tuple[Any, Any]:
    fixed, driven, carry = jax.tree.map(lambda p: p.value, primals)
    # What nobody differentiates, such as a constant, would be kept in vain.
    differentiated = {
      k: p.value for k, p in enumerate(primals[0]) if p.perturbed
    }
    taus = {
      number: None if tap.drive else _zeros(steps, tap.equation.outputs[0])
      for number, tap in enumerate(traced.taps)
      if place[tap.weights] in differentiated
    }
    changed = {
      k: differentiated[k]
      for k in (place[v] for v in traced.untapped)
      if k in differentiated
    }
    results, pull, states = jax.vjp(
      partial(loop, fixed), changed, driven, taus, carry, has_aux=True
    )
    return results, (pull, states, fixed)

  def backward(known: tuple, bars: Any) -> tuple[Any, Any, Any]:
    pull, states, fixed = known
    fixed_bars, driven_bars, product_bars, carry_bars = pull(
      jax.tree.map(_instantiated, bars)
    )
    of_drives = dict(zip(traced.read_driven, driven_bars, strict=True))
    for number, product_bar in product_bars.items():
      tap = traced.taps[number]
      k = place[tap.weights]
      bar = _weights_adjoint(
        tap,
        states[number],
        fixed[k],
        of_drives[tap.drive] if tap.drive else product_bar,
      )
      fixed_bars[k] = bar + fixed_bars[k] if k in fixed_bars else bar
    every = [fixed_bars.get(k) for k in range(len(fixed))]
    return every, driven_bars, carry_bars

  run.defvjp(forward, backward, symbolic_zeros=True)
  return run(fixed, driven, carry)


def _instantiated(bar: Any) -> Any:
  """An adjoint that is known to be zero as an array."""
  if not isinstance(bar, SymbolicZero):
    return bar
  if bar.dtype == jax.dtypes.float0:
    return np.zeros(bar.shape, bar.dtype)
  return jnp.zeros(bar.shape, bar.dtype)


def _loop(
  traced: StepProgram,
  steps: int,
  weights: Sequence[jax.Array],
  untapped: Sequence[jax.Array],
  driven: Sequence[jax.Array],
  taus: dict[int, jax.Array | None],
  carry: Sequence[jax.Array],
) -> tuple[Any, dict[int, jax.Array]]:
  """((outputs, carry), the states that taps multiply, of those in taus)."""

  def step(carry: Any, now: tuple) -> tuple[Any, Any]:
    driven, taus = now
    environment = dict(zip(traced.untapped, untapped, strict=True))
    environment |= dict(zip(traced.read_driven, driven, strict=True))
    environment |= dict(zip(traced.carry, carry, strict=True))
    _advance(traced, environment, weights, taus)
    new = [jnp.asarray(program.read(environment, v)) for v in traced.new_carry]
    states = {k: environment[traced.taps[k].state] for k in taus}
    return new, ([environment[v] for v in traced.looped], states)

  final, (outputs, states) = lax.scan(
    step, list(carry), (list(driven), taus), length=steps
  )
  return (outputs, final), states


def _advance(
  traced: StepProgram,
  environment: dict[Variable, Any],
  weights: Sequence[jax.Array],
  taus: dict[int, jax.Array | None],
) -> None:
  """One step of what depends on the state."""
  number = {id(tap.equation): k for k, tap in enumerate(traced.taps)}
  for equation in traced.state:
    k = number.get(id(equation))
    if k is None:
      program.evaluate([equation], environment)
      continue
    tap = traced.taps[k]
    product = tap.product(environment[tap.state], weights[k])
    if (tau := taus.get(k)) is not None:
      product = _tapped(tau, product)
    environment[equation.outputs[0]] = product


def _zeros(steps: int, like: Variable) -> jax.Array:
  return jnp.zeros((steps, *like.shape), like.dtype)


def _weights_adjoint(
  tap: Tap, states: jax.Array, weights: jax.Array, bars: jax.Array
) -> jax.Array:
  """Equation (1): the transpose of the product of all steps at once."""
  products = lambda weights: jax.vmap(
    lambda state: tap.product(state, weights)
  )(states)
  [weights_bar] = jax.linear_transpose(products, weights)(bars)
  return weights_bar
