"""Hoisted inputs and deferred weight gradients for any recurrent step.

Differentiating `lax.scan` adds to the gradient of every weight in every step:
for R [H, 4H] a product h^T a and a sum, all in the loop.  With a_t = h_t R,

    R̄ = sum_t h_t^T ā_t                                                  (1)

is one product over time and batch, once all ā_t are known (Appleyard, Kocisky &
Blunsom 2016, section 4.2).  Here a step is split by its program: products that
see no state are computed for many steps at once, before the loop, and each
product of the state with weights gets a tap, a_t = h_t R + τ_t with τ = 0,
whose adjoint is ā_t, unless what it is added to has that adjoint already.  JAX
differentiates the loop with respect to inputs, taps and initial carry; (1)
follows.  All of this goes by `blocks` of steps, which stay in a cache, and of
which nothing is kept but what the loops have to keep.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from revmom.cells import blocks, step_program
from revmom.cells.step_program import StepProgram, Tap
from revmom.jacobian.program import equations as program
from revmom.jacobian.program.equations import Operand, Variable

BLOCK_ROWS = 256  # steps times rows of the state in a block

Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def defer_weights(step: Step) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
  """A sweep of a step, the gradients of whose weights wait outside of the loop.

  It computes what `lax.scan` computes.  Reverse mode, forward over reverse and
  reverse over reverse pass; forward mode alone needs `lax.scan`.

  What a step does with its inputs alone is done for a block of steps at once,
  and so are the gradients of weights that multiply states (by dot_general or a
  convolution, inlined through `jit` and `checkpoint`, and for concatenated
  [x, h] W in parts).  Loops within a step, and functions with custom
  derivatives, stay as they are.  It keeps what `lax.scan` would keep for its
  gradient.

  Args:
    step: (params, carry, input) -> (carry, output), of pytrees; it may close
      over arrays, and must have no side effects.

  Returns:
    apply: (params, xs, initial_carry) -> (outputs, carry), where the arrays of
    xs and outputs have a leading axis of time.  It raises ValueError if xs have
    no arrays or several lengths, or if the step changes the structure, the
    shapes or the types of the carry.

  >>> def cell(params, h, x):
  ...   h = jnp.tanh(x @ params["W"] + h @ params["R"])
  ...   return h, h
  >>> params = {"W": jnp.ones((3, 5)), "R": jnp.ones((5, 5))}
  >>> outputs, carry = defer_weights(cell)(
  ...   params, jnp.ones((7, 2, 3)), jnp.zeros((2, 5))
  ... )
  >>> outputs.shape, carry.shape
  ((7, 2, 5), (2, 5))
  """

  def apply(params: Any, xs: Any, initial_carry: Any) -> tuple[Any, Any]:
    _check_steps(xs)
    carry = jax.tree.map(jnp.asarray, initial_carry)
    traced, constants, (carry_shape, output_shape) = step_program.trace(
      step, params, _shapes(carry), _shapes(xs, 1)
    )
    _check_carry(_shapes(carry), carry_shape)
    known = dict(
      zip(traced.given, [*constants, *jax.tree.leaves(params)], strict=True)
    )
    program.evaluate(traced.fixed, known)
    final, outputs = blocks.scan(
      partial(_block, traced, known),
      jax.tree.leaves(carry),
      jax.tree.leaves(xs),
      _rows(carry),
      BLOCK_ROWS,
      reverse=False,
    )
    return _unflatten(output_shape, outputs), _unflatten(carry_shape, final)

  return apply


def _block(
  traced: StepProgram,
  known: dict[Variable, Any],
  carry: list[jax.Array],
  xs: list[jax.Array],
) -> tuple[list[jax.Array], list[jax.Array]]:
  """The final carry and the outputs of some steps."""
  known = known | _drive(traced, known, xs)
  steps = len(xs[0])
  looped, final = _recurrence(
    traced,
    steps,
    [known[v] for v in traced.read_fixed],
    [known[v] for v in traced.read_driven],
    carry,
  )
  known |= dict(zip(traced.looped, looped, strict=True))
  in_time = {*traced.looped, *_driven_outputs(traced)}
  return final, [_in_time(known, steps, in_time, v) for v in traced.outputs]


def _rows(carry: Any) -> int:
  """How many vectors a state has, at the most."""
  shapes = [leaf.shape for leaf in jax.tree.leaves(carry)]
  return max((math.prod(shape[:-1]) for shape in shapes), default=1)


def _unflatten(like: Any, leaves: list[jax.Array]) -> Any:
  structure: Any = jax.tree.structure(like)
  return structure.unflatten(leaves)


def _shapes(tree: Any, skip: int = 0) -> Any:
  """Shapes and types, without some leading axes."""
  return jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(jnp.shape(a)[skip:], jnp.result_type(a)),
    tree,
  )


def _check_steps(xs: Any) -> None:
  """That all sequences have one length."""
  shapes = [jnp.shape(array) for array in jax.tree.leaves(xs)]
  if not shapes or () in shapes or len({shape[0] for shape in shapes}) != 1:
    raise ValueError(
      f"xs have arrays of the shapes {shapes}: give at least one, and all with "
      "the same leading axis of time."
    )


def _check_carry(before: Any, after: Any) -> None:
  described = lambda tree: jax.tree.map(lambda a: (a.shape, str(a.dtype)), tree)
  if described(before) != described(after):
    raise ValueError(
      f"The step makes a carry of {described(after)} of one of "
      f"{described(before)}: both must have the same structure, shapes and "
      "types."
    )


def _driven_outputs(traced: StepProgram) -> set[Variable]:
  made = {v for equation in traced.driven for v in equation.outputs}
  return made.union(traced.inputs)


def _drive(
  traced: StepProgram, known: dict[Variable, Any], xs: list[Any]
) -> dict[Variable, Any]:
  """What depends on inputs alone, and is read elsewhere, for all steps."""
  driven = _driven_outputs(traced)
  wanted = list(
    dict.fromkeys(
      v
      for v in (*traced.read_driven, *traced.outputs)
      if isinstance(v, Variable) and v in driven
    )
  )

  def one_step(inputs: list[Any]) -> list[Any]:
    environment = known | dict(zip(traced.inputs, inputs, strict=True))
    program.evaluate(traced.driven, environment)
    return [environment[v] for v in wanted]

  return dict(zip(wanted, jax.vmap(one_step)(xs), strict=True))


def _in_time(
  known: dict[Variable, Any], steps: int, in_time: set[Variable], v: Operand
) -> jax.Array:
  """An output of all steps, even if it is the same in all of them."""
  value = program.read(known, v)
  if isinstance(v, Variable) and v in in_time:
    return value
  return jnp.broadcast_to(value, (steps, *jnp.shape(value)))


@jax.custom_jvp
def _tapped(tap: jax.Array, value: jax.Array) -> jax.Array:
  """value + tap for a tap of zeros, which need not be read."""
  return value


_tapped.defjvp(
  lambda primals, tangents: (_tapped(*primals), tangents[0] + tangents[1])
)


def _recurrence(
  traced: StepProgram,
  steps: int,
  fixed: list[jax.Array],
  driven: list[jax.Array],
  carry: list[jax.Array],
) -> tuple[list[jax.Array], list[jax.Array]]:
  """Outputs of the loop and the final carry, differentiated by (1)."""
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
