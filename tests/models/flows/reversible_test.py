"""Reversible stacks against plain autodiff, and the memory they take."""

import jax
import jax.numpy as jnp
import pytest
from jax.flatten_util import ravel_pytree

from revmom.models import (
  Bijection,
  actnorm,
  affine,
  chain,
  convnet,
  glow_step,
  linear,
  mlp,
  reversible_stack,
  stack,
  swapped,
)
from revmom.models.flows.coupling import HALVES

MLP = mlp((8,), jnp.tanh)
PAIR = chain(affine(MLP), affine(MLP, swapped(HALVES)), linear())
DEPTH = 9  # more than are unrolled


def problem(layer, shape, depth, dtype):
  plain, reversible = stack(layer, depth), reversible_stack(layer, depth)
  x = jax.random.normal(jax.random.key(0), shape, dtype)
  params = jax.jit(plain.init)(jax.random.key(1), x)
  flat, unravel = ravel_pytree(params)
  noise = jax.random.normal(jax.random.key(2), flat.shape, dtype)
  return plain, reversible, unravel(flat + 0.1 * noise), x


def losses(bijection):
  """Of either direction; all that comes out has a weight."""

  def loss(direction):
    def value(params, x):
      y, log_det = direction(params, x)
      return jnp.sum(jnp.sin(y)) + jnp.sum(log_det * log_det)

    return value

  return map(
    loss, (bijection.forward_and_log_det, bijection.inverse_and_log_det)
  )


def relative_error(got, expected):
  got, expected = ravel_pytree(got)[0], ravel_pytree(expected)[0]
  return float(jnp.linalg.norm(got - expected) / jnp.linalg.norm(expected))


@pytest.mark.slow
def test_gradients_are_those_of_autodiff(x64):
  plain, reversible, params, x = problem(PAIR, (3, 5), DEPTH, jnp.float64)
  pairs = zip(losses(plain), losses(reversible), strict=True)
  for expected, got in pairs:
    differentiate = lambda f: jax.jit(jax.value_and_grad(f, (0, 1)))
    error = relative_error(
      differentiate(got)(params, x), differentiate(expected)(params, x)
    )
    assert error < 1e-9


@pytest.mark.slow
def test_gradients_of_glow_steps(x64):
  step = glow_step(convnet(3, kernels=(3, 1)))
  plain, reversible, params, x = problem(step, (2, 2, 2, 3), 9, jnp.float64)
  expected, got = (
    jax.jit(jax.grad(next(losses(bijection)), (0, 1)))(params, x)
    for bijection in (plain, reversible)
  )
  assert relative_error(got, expected) < 1e-9


@pytest.mark.slow
def test_second_derivatives(x64):
  """Reverse over reverse and forward over reverse, of params and x."""
  plain, reversible, params, x = problem(PAIR, (2, 4), 2, jnp.float64)
  direction = jax.tree.map(lambda leaf: jnp.cos(leaf + 1), (params, x))

  def curvature(bijection, over):
    gradient = jax.grad(lambda at: next(losses(bijection))(*at))
    if over == "forward":
      return jax.jvp(gradient, ((params, x),), (direction,))[1]
    flat = lambda tree: ravel_pytree(tree)[0]
    slope = lambda at: flat(gradient(at)) @ flat(direction)
    return jax.grad(slope)((params, x))

  expected = jax.jit(lambda: curvature(plain, "reverse"))()
  for over in ("reverse", "forward"):
    got = jax.jit(lambda over=over: curvature(reversible, over))()
    assert relative_error(got, expected) < 1e-9


@pytest.mark.slow
def test_gradients_of_mapped_runs():
  _, reversible, params, x = problem(PAIR, (3, 5), 2, jnp.float32)
  gradient = jax.grad(next(losses(reversible)))
  scales = jnp.array([0.5, 1.0])
  mapped = jax.jit(jax.vmap(lambda scale: gradient(params, scale * x)))(scales)
  second = jax.tree.map(lambda leaf: leaf[1], mapped)
  assert relative_error(second, gradient(params, x)) < 1e-5


def temporary_bytes(make, depth):
  """Of a compiled gradient, besides its arguments and results."""
  layers = make(PAIR, depth)
  x = jax.ShapeDtypeStruct((2048, 8), jnp.float32)
  params = jax.eval_shape(layers.init, jax.random.key(0), x)
  loss = lambda params, x: sum(map(jnp.sum, layers.forward(params, x)))
  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(params, x).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_does_not_grow_with_depth():
  flat = [temporary_bytes(reversible_stack, depth) for depth in (4, 16, 64)]
  assert max(flat) <= 1.1 * min(flat)
  # The measure does see activations where they are kept.
  assert temporary_bytes(stack, 64) > 10 * max(flat)


def gradient_in(bijection, params, x, dtype):
  params, x = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, x))
  return jax.jit(jax.grad(next(losses(bijection)), (0, 1)))(params, x)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [16, 64])
def test_float32_gradients_of_normalised_layers(depth, x64):
  """Actnorm keeps values near one; the error stays near that of autodiff."""
  layer = chain(actnorm(), PAIR)
  plain, reversible, params, x = problem(layer, (16, 6), depth, jnp.float32)
  params = jax.jit(plain.init)(jax.random.key(1), x)
  truth = gradient_in(plain, params, x, jnp.float64)
  for bijection in (plain, reversible):
    got = gradient_in(bijection, params, x, jnp.float32)
    got = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), got)
    assert relative_error(got, truth) < 1e-4


@pytest.mark.slow
def test_what_is_not_recovered_has_no_gradient():
  """64 random layers: the inverse loses all digits, and says so."""
  _, reversible, params, x = problem(PAIR, (16, 6), 64, jnp.float32)
  y, log_det = reversible.forward_and_log_det(params, x)
  assert jnp.isfinite(y).all() and jnp.isfinite(log_det).all()
  gradient = gradient_in(reversible, params, x, jnp.float32)
  assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(gradient))


def shrink(params, x):
  """x / p, with the log-determinant of three elements."""
  log_det = jnp.broadcast_to(-3 * jnp.log(params), x.shape[:-1])
  return x / params, log_det


def grow_wrongly(params, y):
  """p y, but off by a hundredth where that is large."""
  x = y * params
  x = jnp.where(jnp.abs(x) > 5, 1.01 * x, x)
  log_det = jnp.broadcast_to(3 * jnp.log(params), x.shape[:-1])
  return x, log_det


@pytest.mark.slow
def test_examples_that_are_not_recovered_are_told_apart():
  init = lambda key, x: jnp.asarray(1.5, x.dtype)
  layers = reversible_stack(Bijection(init, shrink, grow_wrongly), 2)
  small = jnp.array([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0], [1e-3, 0.0, 1e-4]])
  x = jnp.concatenate([small, jnp.array([[9.0, 0.1, 0.1]])])
  params = layers.init(jax.random.key(0), x)

  def loss(params, x, weights):
    y, log_det = layers.forward_and_log_det(params, x)
    return weights @ (jnp.sum(jnp.cos(y + 1), -1) + log_det)

  gradient = jax.grad(loss, (0, 1))
  # cos(x / p^2 + 1) - 6 log p, by hand.
  slope = -jnp.sin(small / 2.25 + 1)
  of_params, of_x = gradient(params, x, jnp.ones(4))
  assert jnp.isnan(of_params).all() and jnp.isnan(of_x[3]).all()
  assert jnp.allclose(of_x[:3], slope / 2.25, rtol=1e-5)
  # A loss without the last one has the gradient that it would have alone.
  of_params, of_x = gradient(params, x, jnp.array([1.0, 1.0, 1.0, 0.0]))
  each = jnp.sum(-slope * small / 2.25 / 1.5) - 3 * 3 / 1.5
  assert jnp.allclose(of_params, each, rtol=1e-5)
  assert jnp.allclose(of_x[:3], slope / 2.25) and (of_x[3] == 0).all()
