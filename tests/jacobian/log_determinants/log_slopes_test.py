"""Log-determinants of maps that are saturated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.jacobian import log_det

SOFTPLUS = lambda x: np.logaddexp(0, x)
TRUE = {
  "tanh": (jnp.tanh, lambda x: 2 * (np.log(2) - x - SOFTPLUS(-2 * x))),
  "sigmoid": (jax.nn.sigmoid, lambda x: -SOFTPLUS(x) - SOFTPLUS(-x)),
  "exp": (jnp.exp, lambda x: x),
  "erf": (jax.scipy.special.erf, lambda x: np.log(2 / np.pi**0.5) - x * x),
}


@pytest.mark.parametrize("name", TRUE)
def test_saturated(name):
  """float32 against float64 formulas; the derivative underflows."""
  f, true = TRUE[name]
  x = np.array([-150.0, -10, 0, 0.3, 10, 17, 50])
  got = log_det(lambda x: 2 * f(x))(jnp.asarray(x, jnp.float32))
  expected = true(x).sum() + len(x) * np.log(2)
  np.testing.assert_allclose(got.value, expected, 1e-6)
  assert got.sign == 1
