"""Directions and stacks, against flipped grids."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.cells import grid, mdlstm, mdrnn, multidirectional

B, D, H = 2, 3, 4


def flipped(params, xs, direction):
  """A sweep in another direction is one over a flipped grid."""
  axes = tuple(axis for axis, d in enumerate(direction) if d < 0)
  return jnp.flip(mdrnn.apply(params, jnp.flip(xs, axes)), axes)


def draw(ndim, directions=None):
  params = multidirectional.init_directions(
    mdrnn.init, jax.random.key(0), D, H, ndim=ndim, directions=directions
  )
  shape = (2, 3, 2)[:ndim]
  return params, jax.random.normal(jax.random.key(1), (*shape, B, D))


@pytest.mark.slow
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_all_directions(ndim):
  params, xs = draw(ndim)
  assert len(params) == 2**ndim
  with jax.disable_jit():
    outputs = multidirectional.apply_directions(mdrnn.apply, params, xs)
    expected = [
      flipped(p, xs, direction)
      for p, direction in zip(params, grid.all_directions(ndim), strict=True)
    ]
    total = multidirectional.apply_directions(
      mdrnn.apply, params, xs, combine="sum"
    )
  np.testing.assert_allclose(outputs, jnp.concatenate(expected, -1), rtol=1e-5)
  np.testing.assert_allclose(total, sum(expected), rtol=1e-4, atol=1e-6)


def test_given_directions():
  directions = [(1, -1), (-1, -1)]
  params, xs = draw(2, directions)
  with jax.disable_jit():
    outputs = multidirectional.apply_directions(
      mdrnn.apply, params, xs, directions=directions
    )
    expected = [
      flipped(p, xs, d) for p, d in zip(params, directions, strict=True)
    ]
  np.testing.assert_allclose(outputs, jnp.concatenate(expected, -1), rtol=1e-5)


def test_directions_have_weights_of_their_own():
  params, _ = draw(2)
  for other in params[1:]:
    assert not np.array_equal(params[0].input_weights, other.input_weights)


@pytest.mark.slow
@pytest.mark.parametrize("combine", multidirectional.COMBINATIONS)
def test_stack(combine):
  init = functools.partial(mdlstm.init, cell="leaky")
  layers = multidirectional.init_stack(
    init, jax.random.key(0), D, [2, 5], ndim=1, combine=combine
  )
  xs = jax.random.normal(jax.random.key(1), (4, B, D))
  sizes = jnp.array([[4], [2]])
  with jax.disable_jit():
    outputs = multidirectional.apply_stack(
      mdlstm.apply, layers, xs, combine=combine, sizes=sizes
    )
    for layer in layers:
      forwards = mdlstm.apply(layer[0], xs, direction=(1,), sizes=sizes)
      backwards = mdlstm.apply(layer[1], xs, direction=(-1,), sizes=sizes)
      xs = (
        forwards + backwards
        if combine == "sum"
        else jnp.concatenate([forwards, backwards], -1)
      )
  np.testing.assert_array_equal(outputs, xs)


def test_wrong_arguments():
  params, xs = draw(2)
  apply = functools.partial(multidirectional.apply_directions, mdrnn.apply)
  with pytest.raises(ValueError, match="choose one of"):
    apply(params, xs, combine="mean")
  with pytest.raises(ValueError, match="4 parameters for 2 directions"):
    apply(params, xs, directions=[(1, 1), (1, -1)])
  with pytest.raises(ValueError, match="directions is empty"):
    apply((), xs, directions=[])
