"""The textbook's exponents, fitted to what programs cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from revmom.analysis import cost, scaling
from revmom.cells import mdrnn


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


def wavenet(length, depth, units):
  """d causal layers with filters of 2 and k units, on t samples."""

  def run(kernels, x):
    for number, kernel in enumerate(kernels):
      dilation = 2 ** (number % 4)
      x = jnp.tanh(
        lax.conv_general_dilated(
          x,
          kernel,
          (1,),
          [(dilation, 0)],
          rhs_dilation=(dilation,),
          dimension_numbers=("NWC", "WIO", "NWC"),
        )
      )
    return x

  return run, [shape(2, units, units)] * depth, shape(1, length, units)


def pixelcnn(height, width, depth, units):
  """d masked layers of 3 x 3 and k features."""
  mask = np.ones((3, 3, 1, 1), np.float32)
  mask[2] = mask[1, 2] = 0

  def run(kernels, x):
    for kernel in kernels:
      x = jnp.tanh(
        lax.conv_general_dilated(
          x,
          kernel * mask,
          (1, 1),
          "SAME",
          dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
      )
    return x

  kernels = [shape(3, 3, units, units)] * depth
  return run, kernels, shape(1, height, width, units)


def grid(height, width, depth, units):
  """d layers of a recurrent network on a grid."""

  def run(params, x):
    for own in params:
      x = mdrnn.apply(own, x, schedule="rows")
    return x

  params = jax.eval_shape(
    lambda key: mdrnn.init(key, units, units, bias=False), jax.random.key(0)
  )
  return run, [params] * depth, shape(height, width, 1, units)


NETWORKS = {
  "wavenet": (wavenet, dict(length=256, depth=4, units=8), (1, 1, 2)),
  "pixelcnn": (
    pixelcnn,
    dict(height=32, width=32, depth=4, units=8),
    (1, 1, 1, 2),
  ),
  "grid": (grid, dict(height=16, width=16, depth=2, units=8), (1, 1, 1, 2)),
}


def found(build, sizes):
  return cost(*build(**sizes), backward=False, feature_axes=99)


@pytest.mark.parametrize("name", NETWORKS)
def test_connections_grow_with_the_square_of_units_and_all_else(name):
  build, base, exponents = NETWORKS[name]
  for size, exponent in zip(base, exponents, strict=True):
    fit = scaling(
      lambda n, size=size: found(build, {**base, size: n}).connections,
      [base[size], 2 * base[size]],
    )
    # Not k^3, as is sometimes said of PixelCNN: each of its filters sees k
    # features at 9 places, and there are k of them.
    assert abs(fit.exponent - exponent) < 0.05, size


@pytest.mark.parametrize("name", NETWORKS)
def test_rounds(name):
  build, base, _ = NETWORKS[name]
  rounds = lambda **sizes: found(build, base | sizes).forward.dataflow_rounds
  sides = 32 if name == "grid" else 0
  for depth in (1, 3):
    # d, and H + W + d - 2.
    assert rounds(depth=depth) == depth + sides - (name == "grid") * 2
  assert rounds(units=3) == rounds()
  if name == "grid":
    assert rounds(height=3) == rounds() - 13


def test_a_power_law_needs_two_sizes():
  with pytest.raises(ValueError, match="two different sizes"):
    scaling(float, [3, 3])
  with pytest.raises(ValueError, match="positive"):
    scaling(lambda n: n - 3.0, [3, 4])


def test_the_residual_tells_what_is_no_power_law():
  assert scaling(lambda n: 5 * n**1.5, [2, 4, 8]).residual < 1e-12
  assert scaling(lambda n: 5.0 * n + 20, [2, 4, 8]).residual > 0.03
