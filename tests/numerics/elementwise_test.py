"""The sigmoid against its definition."""

import jax.numpy as jnp
import numpy as np

from revmom.numerics import sigmoid


def test_sigmoid(x64):
  values = jnp.linspace(-40, 40, 801)
  np.testing.assert_allclose(
    sigmoid(values), 1 / (1 + np.exp(-np.asarray(values))), 1e-15, 1e-15
  )
