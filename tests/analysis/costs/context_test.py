"""Context windows against the entries of dense Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from revmom.analysis import context_window, cost
from revmom.cells import gru, lstm, mdrnn

KEY = jax.random.key(0)


def widest_row(function, params, x, feature_axes):
  """The most positions in a row of the Jacobian at a random point."""
  jacobian = jax.jit(jax.jacrev(lambda x: function(params, x)))(x)
  outputs = jacobian.shape[: jacobian.ndim - x.ndim]
  positions = x.shape[: x.ndim - feature_axes]
  entries = np.asarray(jacobian).reshape(
    int(np.prod(outputs)), int(np.prod(positions)), -1
  )
  return int((entries != 0).any(-1).sum(-1).max())


def dilated(params, x):
  for number, kernel in enumerate(params):
    x = jnp.tanh(
      lax.conv_general_dilated(
        x,
        kernel,
        (1,),
        [(2**number, 0)],
        rhs_dilation=(2**number,),
        dimension_numbers=("NWC", "WIO", "NWC"),
      )
    )
  return x


def pooled(params, x):
  x = lax.reduce_window(
    x, -jnp.inf, lax.max, (1, 3, 2, 1), (1, 2, 2, 1), "VALID"
  )
  return jnp.tanh(jnp.einsum("bhwc,cd->bhwd", x, params))


def attention(params, x):
  scores = (x @ params) @ x.T
  causal = np.tril(np.ones((len(x), len(x)), bool))
  weights = jax.nn.softmax(jnp.where(causal, scores, -1e30), -1)
  return weights @ x


def gathered(params, x):
  order = np.array([3, 0, 0, 5])
  return x[order, :2] @ params + jnp.roll(x, 2, 0)[:4, :2] @ params


def row(params, xs):
  return lstm.apply(params, xs)[0][3]


CASES = {
  "dilated": (
    dilated,
    lambda key: list(jax.random.normal(key, (3, 2, 2, 2))),
    (1, 12, 2),
    1,
  ),
  "einsum": (
    lambda p, x: jnp.tril(p)[:, None] * x,
    lambda key: jax.random.normal(key, (3, 3)),
    (3, 3),
    0,
  ),
  "gathered": (
    gathered,
    lambda key: jax.random.normal(key, (2, 3)),
    (6, 4),
    0,
  ),
  "grid": (
    lambda p, x: mdrnn.apply(p, x, schedule="rows")[2, 1],
    lambda key: mdrnn.init(key, 2, 3),
    (4, 4, 1, 2),
    2,
  ),
  "wavefront": (
    lambda p, x: mdrnn.apply(p, x, schedule="wavefront")[2, 1],
    lambda key: mdrnn.init(key, 2, 3),
    (4, 4, 1, 2),
    2,
  ),
  "lstm": (row, lambda key: lstm.init(key, 2, 3), (6, 1, 2), 2),
  "reversed": (
    lambda p, x: gru.apply(p, x, reverse=True)[0][3],
    lambda key: gru.init(key, 2, 3),
    (6, 1, 2),
    2,
  ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CASES)
def test_the_widest_row_of_the_jacobian(name):
  function, init, shape, feature_axes = CASES[name]
  params = init(KEY)
  x = jax.random.normal(jax.random.fold_in(KEY, 1), shape)
  expected = widest_row(function, params, x, feature_axes)
  found = context_window(function, params, x, feature_axes=feature_axes)
  assert found == expected
  found = cost(function, params, x, backward=False, feature_axes=feature_axes)
  assert found.context == expected


def test_windows_of_pooling_and_of_attention():
  x = jnp.ones((1, 9, 8, 3))
  assert context_window(pooled, jnp.ones((3, 2)), x, feature_axes=1) == 6
  x = jnp.ones((7, 3))
  for row in (0, 4, 6):
    first = lambda p, x, row=row: attention(p, x)[row]
    found = context_window(first, jnp.ones((3, 3)), x, feature_axes=1)
    assert found == row + 1


def test_several_inputs_and_tokens():
  def embed(table, tokens, others):
    rows = table[tokens]
    return rows[1:] + rows[:-1] + others

  args = jnp.ones((9, 4)), jnp.zeros(6, jnp.int32), jnp.ones((5, 4))
  assert context_window(embed, *args, argnums=(1,)) == 2
  assert context_window(embed, *args) == 3
  assert context_window(embed, *args, argnums=2) == 1


def test_too_many_positions():
  args = jnp.ones(3), jnp.ones((3000,))
  with pytest.raises(ValueError, match="3000 positions.*feature_axes"):
    context_window(lambda p, x: x, *args)
  assert cost(lambda p, x: x, *args, backward=False).context is None
