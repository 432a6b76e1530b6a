"""Patterns against the nonzeros of dense Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

from revmom.jacobian.log_determinants.cuts import size
from revmom.jacobian.log_determinants.sparsity import patterns
from revmom.jacobian.program.constants import Constants
from revmom.jacobian.program.equations import trace
from revmom.jacobian.program.primitives import keep


@pytest.fixture(autouse=True)
def _x64(x64):
  yield


def numbers(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


def pattern(f, *args):
  """The pattern of a function, as a dense matrix."""
  program, _ = trace(f, *args, keep=keep)
  constants = Constants(program.equations)
  found = patterns(program.equations, program.inputs, constants)
  shape = size(program.outputs), size(program.inputs)
  (row,) = program.outputs
  return np.ones(shape, bool) if found[row] is None else found[row].toarray()


def nonzeros(f, *args):
  flat, unravel = ravel_pytree(args)
  rows = lambda z: ravel_pytree(f(*unravel(z)))[0]
  return np.asarray(jax.jacfwd(rows)(flat)) != 0


x, y = numbers(0, 3, 4), numbers(1, 3, 4)
SPARSE = np.where(np.random.default_rng(2).random((4, 5)) < 0.4, 1.5, 0.0)
image = numbers(3, 2, 5, 6, 2)


def convolve(x, features=3, **options):
  groups = options.get("feature_group_count", 1)
  kernel = numbers(4, 3, 2, x.shape[-1] // groups, features)
  kernel[np.random.default_rng(5).random(kernel.shape) < 0.3] = 0
  options = {"window_strides": (1, 1), "padding": "SAME", **options}
  return lax.conv_general_dilated(
    x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
  )


def traced_mask(x):
  matrix = jax.jit(lambda s: s * jnp.tril(jnp.ones((4, 4)), -1).T)(3.0)
  return x @ matrix


EXACT = {  # name: (function, arguments); the pattern has no entry too many
  "elementwise": (lambda x, y: x * y + jnp.sin(x), (x, y)),
  "scalar and array": (
    lambda s: jnp.broadcast_to(s, (3, 4)) * x,
    (np.array(2.0),),
  ),
  "stretched": (lambda x, y: lax.sub(x, y[:, :1]), (x, y)),
  "softmax": (jax.nn.softmax, (x,)),
  "mask": (lambda x: x * (y > 0).astype(np.float64), (x,)),
  "transpose": (lambda x: x.T, (x,)),
  "reshape": (lambda x: x.reshape(2, 6), (x,)),
  "rev": (lambda x: x[:, ::-1], (x,)),
  "slice": (lambda x: x[1:, ::2], (x,)),
  "pad": (lambda x: jnp.pad(x, ((1, 0), (0, 2))), (x,)),
  "negative pad": (
    lambda x: lax.pad(x, 0.0, ((-1, 1, 0), (0, -1, 1))),
    (x,),
  ),
  "concatenate": (lambda x, y: jnp.concatenate([x, y, x], 1), (x, y)),
  "gather": (lambda x: x[np.array([2, 0, 2]), 1:3], (x,)),
  "gather that fills": (
    lambda x: jnp.take(x, np.array([1, 9]), axis=0, mode="fill", fill_value=0),
    (x,),
  ),
  "dynamic slice": (lambda x: lax.dynamic_slice(x, (1, 9), (2, 2)), (x,)),
  "dynamic update": (
    lambda x, y: lax.dynamic_update_slice(x, y[:2, :2], (1, 1)),
    (x, y),
  ),
  "scatter": (lambda x, y: x.at[1, ::2].set(y[0, :2]), (x, y)),
  "scatter add": (
    lambda x, y: x.at[np.array([0, 0, 2])].add(y),
    (x, y),
  ),
  "scatter mul": (lambda x, y: x.at[:, 1].multiply(y[:, 0]), (x, y)),
  "out of bounds": (
    lambda x, y: x.at[np.array([0, 7])].add(y[:2], mode="drop"),
    (x, y),
  ),
  "select": (lambda x: jnp.where(y > 0, x, 2 * x[::-1]), (x,)),
  "sum": (lambda x: jnp.sum(x, axis=1), (x,)),
  "product": (lambda x: jnp.prod(x, axis=0), (x,)),
  "cumsum": (lambda x: jnp.cumsum(x, axis=1), (x,)),
  "reverse cumprod": (lambda x: lax.cumprod(x, axis=0, reverse=True), (x,)),
  "matrix product": (lambda x: x @ SPARSE, (x,)),
  "product from the left": (lambda x: SPARSE.T @ x.T, (x,)),
  "product of two": (lambda x, y: x @ y.T, (x, y)),
  "batched": (
    lambda x: jnp.einsum("bij,bj->ib", np.stack([SPARSE.T] * 3), x),
    (x,),
  ),
  "mask inside": (traced_mask, (x,)),
  "convolution": (convolve, (image,)),
  "strides": (
    lambda x: convolve(x, window_strides=(2, 3), padding=[(1, 0), (2, 1)]),
    (image,),
  ),
  "dilation": (
    lambda x: convolve(
      x,
      lhs_dilation=(2, 1),
      rhs_dilation=(1, 2),
      padding=[(1, 1), (0, 2)],
    ),
    (image,),
  ),
  "groups": (lambda x: convolve(x, 4, feature_group_count=2), (image,)),
  "softplus": (jax.nn.softplus, (x,)),
}

LARGER = {  # Nonzeros depend on the point.
  "select": (lambda x, y: jnp.where(x > 0, x, y), (x, y)),
  "maximum": (lambda x: jnp.max(x, axis=1), (x,)),
  "sort": (lambda x: jnp.sort(x, axis=1), (x,)),
  "dynamic slice": (
    lambda x: lax.dynamic_slice(x, (jnp.argmax(x[:, 0]), 0), (1, 4)),
    (x,),
  ),
}


@pytest.mark.parametrize("name", EXACT)
def test_patterns_are_the_nonzeros(name):
  f, args = EXACT[name]
  np.testing.assert_array_equal(pattern(f, *args), nonzeros(f, *args))


@pytest.mark.parametrize("name", LARGER)
def test_patterns_hold_at_every_point(name):
  f, args = LARGER[name]
  got, want = pattern(f, *args), nonzeros(f, *args)
  assert (got >= want).all()
  if name == "sort":
    assert not got[:4, 4:].any()
