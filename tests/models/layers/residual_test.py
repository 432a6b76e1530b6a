"""Residual layers: their equations, and what is left of the identity path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.nn import initializers

from revmom.analysis import batch_norm_product
from revmom.analysis.closed_forms.initializers import fixup
from revmom.models import nnx as modules
from revmom.models.layers.layer import batch_norm, convolution, dense, repeated
from revmom.models.layers.residual import (
  fixup_residual,
  post_norm,
  pre_norm,
  residual,
)

WIDTH, BATCH = 16, 32


def inputs(dtype=jnp.float32):
  return jax.random.normal(jax.random.key(0), (BATCH, WIDTH), dtype)


def held(layer):
  """The same values, without a derivative."""
  return layer._replace(
    apply=lambda p, x: jax.lax.stop_gradient(layer.apply(p, x))
  )


def pulled_back(net, depth):
  """An adjoint of all z, through the whole stack."""
  z = inputs()
  stack = repeated(net, depth)
  params = stack.init(jax.random.key(1), z)
  bar = jax.random.normal(jax.random.key(2), z.shape)
  _, pull = jax.vjp(lambda z: stack.apply(params, z), z)
  return pull(bar)[0], bar


def test_equations():
  z = inputs()
  keys = jax.random.split(jax.random.key(1), 3)
  w = jax.random.normal(keys[0], (WIDTH, WIDTH))
  gamma, beta = jax.random.normal(keys[1], (2, WIDTH))
  f = lambda z: np.tanh(np.asarray(z) @ np.asarray(w))
  norm = lambda z: gamma * (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) + beta
  branch, normed = dense(), batch_norm()
  of_branch = branch.init(keys[2], z)._replace(weights=w)
  np.testing.assert_allclose(
    residual(branch).apply(of_branch, z), z + f(z), atol=1e-5
  )
  for layer, expected in (
    (pre_norm(branch, normed), z + f(norm(z))),
    (post_norm(branch, normed), norm(z + f(z))),
  ):
    params = layer.init(keys[2], z)
    params = params._replace(
      branch=of_branch, norm=params.norm._replace(gamma=gamma, beta=beta)
    )
    np.testing.assert_allclose(layer.apply(params, z), expected, atol=1e-4)


@pytest.mark.parametrize("depth", [1, 60])
def test_the_identity_path_survives_inside(depth):
  """D6: it passes on all of an adjoint, at any depth, to rounding of none."""
  got, bar = pulled_back(pre_norm(held(dense()), batch_norm()), depth)
  np.testing.assert_array_equal(got, bar)


@pytest.mark.parametrize("depth", [1, 60])
def test_the_identity_path_is_lost_after_the_sum(depth):
  """D6: each layer multiplies it by the closed form's Jacobian."""
  net = post_norm(held(dense()), batch_norm())
  got, bar = pulled_back(net, depth)
  z, sums = inputs(), []
  params = jax.jit(lambda key: repeated(net, depth).init(key, z))(
    jax.random.key(1)
  )
  for number in range(depth):
    one = jax.tree.map(lambda leaf, n=number: leaf[n], params)
    sums.append(z + jnp.tanh(z @ one.branch.weights))
    z = (sums[-1] - sums[-1].mean(0)) / jnp.sqrt(sums[-1].var(0) + 1e-5)
  expected = bar
  for total in reversed(sums):
    expected = batch_norm_product(total, expected)
  scale = jnp.linalg.norm(expected)
  assert jnp.linalg.norm(got - expected) < 1e-4 * scale
  assert scale < 0.95**depth * jnp.linalg.norm(bar)


def test_zero_branches_are_the_identity():
  z = inputs()
  for layer in (
    residual(dense(weights=initializers.zeros)),
    pre_norm(dense(weights=initializers.zeros), batch_norm()),
    fixup_residual(10),
  ):
    np.testing.assert_array_equal(
      layer.apply(layer.init(jax.random.key(0), z), z), z
    )


@pytest.mark.parametrize("kernel", [None, 3])
def test_fixup(kernel):
  z = inputs() if kernel is None else inputs().reshape(BATCH, 4, 2, 2)
  layer = fixup_residual(25, kernel=kernel)
  params = layer.init(jax.random.key(0), z)
  shape = params.first.shape
  np.testing.assert_allclose(
    params.first, fixup(25, 0, 2)(jax.random.key(0), shape, jnp.float32)
  )
  assert not params.second.any()
  second = jax.random.normal(jax.random.key(1), shape)
  b = jnp.array([0.1, -0.2, 0.3, -0.4])
  params = params._replace(second=second, biases=b, multiplier=jnp.array(1.5))
  if kernel is None:
    product = lambda x, w: x @ w
  else:
    product = lambda x, w: jax.lax.conv(
      x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1), (1, 1), "SAME"
    ).transpose(0, 2, 3, 1)
  hidden = jnp.maximum(product(z + b[0], params.first) + b[1], 0)
  expected = z + 1.5 * product(hidden + b[2], second) + b[3]
  np.testing.assert_allclose(layer.apply(params, z), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [4, 64])
def test_fixup_updates_do_not_grow_with_depth(depth):
  """One step of gradient descent changes outputs by O(rate), at any depth.

  (Zhang, Dauphin & Ma 2019, section 3.)  With He's weights in the branches it
  would be by O(rate L).
  """
  z, rate = inputs(), 1e-3
  layer = repeated(fixup_residual(depth), depth)

  def change(params):
    loss = lambda p: jnp.sum(layer.apply(p, z)[:, 0]) / BATCH
    gradients = jax.grad(loss)(params)
    after = jax.tree.map(lambda p, g: p - rate * g, params, gradients)
    return (loss(params) - loss(after)) / rate

  params = layer.init(jax.random.key(1), z)
  he = params._replace(first=params.first * depth**0.5)
  got, without = jax.jit(jax.vmap(change))(
    jax.tree.map(lambda a, b: jnp.stack([a, b]), params, he)
  )
  # Biases alone give one for each layer; of the weights it is what is left.
  assert 0 < got - depth < 40 and without - depth > depth


def test_modules_are_the_functions():
  z, norm = inputs(), nnx.LayerNorm(WIDTH, rngs=nnx.Rngs(0))
  branch = nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(1))
  for module, expected in (
    (modules.Residual(branch), z + branch(z)),
    (modules.PreNormResidual(branch, norm), z + branch(norm(z))),
    (modules.PostNormResidual(branch, norm), norm(z + branch(z))),
  ):
    np.testing.assert_array_equal(module(z), expected)


@pytest.mark.slow
def test_wrong_input():
  z, narrow = inputs(), dense(3)
  for layer in (
    residual(narrow),
    pre_norm(narrow, batch_norm()),
    post_norm(narrow, batch_norm()),
  ):
    params = layer.init(jax.random.key(0), z)
    with pytest.raises(ValueError, match="a residual branch must keep"):
      layer.apply(params, z)
  with pytest.raises(ValueError, match="must keep"):
    modules.Residual(lambda z: z[:, :1])(z)
  with pytest.raises(ValueError, match="num_branches=0"):
    fixup_residual(0)
  with pytest.raises(ValueError, match="depth=0"):
    repeated(dense(), 0)
  with pytest.raises(ValueError, match="only one that keeps shape"):
    repeated(narrow, 2).init(jax.random.key(0), z)
  with pytest.raises(ValueError, match=r"expected images \[B, H, W, C\]"):
    layer = convolution()
    layer.apply(layer.init(jax.random.key(0), z), z)
