"""Moves of arrays that are held small."""

import jax.numpy as jnp
import pytest
from jax import lax

from revmom.analysis import cost


@pytest.mark.parametrize(
  "scalar",
  [
    lambda a: lax.squeeze(a, (0,)),
    lambda a: lax.reshape(a, ()),
    lambda a: lax.squeeze(lax.broadcast_in_dim(a[0], (1,), ()), (0,)),
  ],
)
def test_known_arrays_of_one_element_become_scalars(scalar):
  found = cost(lambda w, x: w * x[scalar(jnp.array([1]))], 2.0, jnp.ones(3))
  assert (found.connections, found.context) == (1, 1)
