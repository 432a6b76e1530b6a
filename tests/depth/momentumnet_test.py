"""Momentum ResNets on which the truncating bit store of momentumnet fails.

Its gradients are off by 13.4, 5.8 and 2.28 times their size there: division
towards zero loses every negative velocity, and its one word overflows.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from revmom import depth

WIDTH, HIDDEN, BATCH = 32, 64, 64


def residual(layer, x):
  return jnp.tanh(x @ layer["w"]) @ layer["v"]


def kept(gamma, carry, layers):
  def step(carry, layer):
    v, x = carry
    v = gamma * v + (1 - gamma) * residual(layer, x)
    return (v, x + v), None

  return lax.scan(step, carry, layers)[0]


@pytest.mark.parametrize(
  "gamma, number, exactly",
  [
    (0.1, 30, 1e-10),
    pytest.param(0.5, 60, 1e-10, marks=pytest.mark.slow),
    (0.9, 200, 1e-9),
    pytest.param(0.9, 10, 1e-9, marks=pytest.mark.slow),
  ],
)
def test_gradients_where_momentumnet_has_none(gamma, number, exactly, x64):
  """Against float64 that keeps all.

  With int64 what is left is that a factor is held to 2^-30 where words spill.
  """
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
  layers = {
    "w": normal(number, WIDTH, HIDDEN) / WIDTH**0.5,
    "v": normal(number, HIDDEN, WIDTH) / (HIDDEN**0.5 * number),
  }
  x = normal(BATCH, WIDTH)
  updates = depth.momentum(residual, gamma)

  def gradient(scan, dtype):
    def objective(layers):
      out = scan((0 * x.astype(dtype), x.astype(dtype)), layers)
      return jnp.mean(out[1] ** 2)

    cast = jax.tree.map(lambda a: a.astype(dtype), layers)
    return jax.tree.map(
      lambda a: a.astype("float64"), jax.grad(objective)(cast)
    )

  exact, fine, usual = jax.jit(
    lambda: (
      gradient(lambda *args: kept(gamma, *args), "float64"),
      gradient(
        lambda *args: depth.reversible_scan(
          updates, *args, integer="int64", fraction_bits=52
        ),
        "float64",
      ),
      gradient(lambda *args: depth.reversible_scan(updates, *args), "float32"),
    )
  )()

  def error(found):
    norm = lambda tree: sum(jnp.sum(a**2) for a in jax.tree.leaves(tree)) ** 0.5
    apart = jax.tree.map(jnp.subtract, found, exact)
    return float(norm(apart) / norm(exact))

  assert error(fine) < exactly
  assert error(usual) < 1e-5
