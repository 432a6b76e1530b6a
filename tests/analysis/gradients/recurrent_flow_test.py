"""Adjoints at every step, against autodiff of the rest of the sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.analysis import recurrent_flow, recurrent_spectra
from revmom.cells import elman, gated_input, gru, lstm, mdlstm, mdrnn, ugrnn

STEPS = 5


def loss(outputs):
  return jnp.sum(jnp.sin(outputs[-1])) + jnp.sum(outputs**2)


def rest_of_sequence(cell, params, xs, start, first):
  """(carry after step `start`) -> loss, by a plain loop."""

  def run(carry):
    outputs = [*first, jax.tree.leaves(carry)[0]]
    for x in xs[start + 1 :]:
      carry, output = cell.step(params, carry, x)
      outputs.append(output)
    return loss(jnp.stack(outputs))

  return run


@pytest.mark.sampled(1)
@pytest.mark.parametrize("cell", [elman, lstm, gru, ugrnn, gated_input])
def test_adjoints_of_states_are_those_of_autodiff(x64, cell):
  keys = jax.random.split(jax.random.key(0), 2)
  params = cell.init(keys[0], 2, 3, dtype=jnp.float64)
  xs = jax.random.normal(keys[1], (STEPS, 2, 2), jnp.float64)
  flow = jax.jit(
    lambda params, xs: recurrent_flow(cell, params, xs, loss=loss)
  )(params, xs)
  assert flow.problems == []

  @jax.jit
  def by_autodiff(params, xs):
    carry, outputs, bars = cell.cell.initial_carry(params, 2), [], []
    for start, x in enumerate(xs):
      carry, output = cell.step(params, carry, x)
      rest = rest_of_sequence(cell, params, xs, start, outputs)
      bars.append(jax.tree.leaves(jax.grad(rest)(carry)))
      outputs.append(output)
    return bars, outputs

  bars, outputs = by_autodiff(params, xs)
  norm = lambda x: np.linalg.norm(np.ravel(x))
  np.testing.assert_allclose(
    flow.adjoint("hidden").norm, [norm(bar[0]) for bar in bars], rtol=1e-9
  )
  if "cell" in flow.adjoint_names:
    # This one includes what reaches the loss by h of the same step.
    assert np.all(flow.adjoint("cell").norm > 0)
  np.testing.assert_allclose(flow.outputs.norm, [norm(y) for y in outputs])

  whole = lambda params, xs: loss(cell.apply(params, xs)[0])
  params_bar, xs_bar = jax.grad(whole, (0, 1))(params, xs)
  np.testing.assert_allclose(
    flow.input_gradients.norm, [norm(bar) for bar in xs_bar], rtol=1e-9
  )
  for name, got in zip(
    flow.parameter_names, flow.parameter_gradients, strict=True
  ):
    np.testing.assert_allclose(got.norm, norm(getattr(params_bar, name)))


@pytest.mark.slow
@pytest.mark.parametrize("cell", [mdrnn, mdlstm])
def test_grids(x64, cell):
  keys = jax.random.split(jax.random.key(0), 2)
  params = cell.init(keys[0], 2, 3, dtype=jnp.float64)
  xs = jax.random.normal(keys[1], (3, 2, 1, 2), jnp.float64)
  flow = recurrent_flow(cell, params, xs, loss=loss)
  assert flow.adjoint("h").norm.shape == (3, 2)
  bars = jax.grad(lambda xs: loss(cell.apply(params, xs)))(xs)
  np.testing.assert_allclose(
    flow.input_gradients.norm, np.linalg.norm(bars, axis=(-2, -1)), rtol=1e-9
  )
  assert flow.problems == []
  assert "2,1" in str(flow)


@pytest.mark.slow
def test_the_default_loss_is_of_length_one_at_the_last_step():
  params = lstm.init(jax.random.key(0), 2, 3)
  flow = recurrent_flow(lstm, params, jnp.ones((STEPS, 2, 2)))
  np.testing.assert_allclose(flow.adjoint("hidden").norm[-1], 1, rtol=1e-6)


@pytest.mark.slow
def test_vanished_gradients_and_numbers_that_are_not_are_reported():
  params = elman.init(jax.random.key(0), 1, 2)
  tiny = params._replace(recurrent_weights=jnp.zeros((2, 2)))
  flow = recurrent_flow(elman, tiny, jnp.ones((STEPS, 1, 1)))
  assert flow.problems == [
    "gradients of inputs: zero, or too small for their type, at 4 of 5 steps, "
    "such as 0"
  ]
  xs = jnp.ones((STEPS, 1, 1)).at[2].set(jnp.nan)
  problems = recurrent_flow(elman, params, xs).problems
  assert "the loss is nan" in problems
  assert "outputs: not finite at 3 of 5 steps, first at 2" in problems
  with pytest.raises(KeyError, match="there are hidden"):
    flow.adjoint("cell")


@pytest.mark.slow
def test_spectra_of_steps(x64):
  """Of d carry_t / d carry_{t-1}, both arrays of the LSTM's carry."""
  keys = jax.random.split(jax.random.key(0), 2)
  params = lstm.init(keys[0], 2, 3, dtype=jnp.float64)
  xs = jax.random.normal(keys[1], (STEPS, 1, 2), jnp.float64)
  spectra = recurrent_spectra(lstm.cell, params, xs)
  carry = lstm.cell.initial_carry(params, 1)
  flat, unravel = jax.flatten_util.ravel_pytree(carry)
  product = np.eye(6)
  step = jax.jit(
    lambda x, v: jax.flatten_util.ravel_pytree(
      lstm.step(params, unravel(v), x)[0]
    )[0]
  )
  for t, x in enumerate(xs):
    jacobian = np.asarray(jax.jacfwd(step, 1)(x, flat))
    flat = step(x, flat)
    product = jacobian @ product
    for got, matrix in (
      (spectra.layers, jacobian),
      (spectra.products, product),
    ):
      s = np.linalg.svd(matrix, compute_uv=False)
      np.testing.assert_allclose(np.exp(got.log_values[t]), s, atol=1e-12)
  assert spectra.names[-1] == "step 4"
