"""The gated-input network with subtracted biases, and its limits."""

import jax
import jax.numpy as jnp
import numpy as np

from revmom.cells import gated_input, ugrnn

T, B, D, H = 5, 3, 2, 4


def sigmoid(values):
  return 1 / (1 + np.exp(-values))


def test_equations_with_subtracted_biases(x64):
  """R = tanh(F (Wh h - B_h) + (1 - F) (Wx x - B_x)), h' = G h + (1 - G) R."""
  rng = np.random.default_rng(0)
  wx = [rng.normal(size=(D, H)) for _ in "GFR"]
  wh = [rng.normal(size=(H, H)) for _ in "GFR"]
  bg, bf, bx, bh = rng.normal(size=(4, H))
  h, xs = rng.normal(size=(B, H)), rng.normal(size=(T, B, D))
  params = gated_input.GatedInputParams(
    jnp.concatenate(wx, 1),
    jnp.concatenate(wh, 1),
    -jnp.concatenate([bg, bf, bx]),
    -jnp.asarray(bh),
    None,
    None,
    None,
  )
  outputs, carry = gated_input.apply(params, jnp.asarray(xs), jnp.asarray(h))
  for x, output in zip(xs, outputs, strict=True):
    gate = sigmoid(h @ wh[0] + x @ wx[0] - bg)
    mixing = sigmoid(h @ wh[1] + x @ wx[1] - bf)
    candidate = np.tanh(
      mixing * (h @ wh[2] - bh) + (1 - mixing) * (x @ wx[2] - bx)
    )
    h = gate * h + (1 - gate) * candidate
    np.testing.assert_allclose(output, h, rtol=1e-13, atol=1e-14)
  np.testing.assert_array_equal(carry, outputs[-1])


def test_a_gate_that_is_half_open_gives_an_update_gate_network(x64):
  """F = 1/2 halves what goes into R."""
  params = jax.jit(lambda key: gated_input.init(key, D, H, dtype=jnp.float64))(
    jax.random.key(0)
  )
  middle = slice(H, 2 * H)
  without = lambda weights: weights.at[..., middle].set(0)
  params = params._replace(
    input_weights=without(params.input_weights),
    recurrent_weights=without(params.recurrent_weights),
  )
  remaining = lambda weights: jnp.concatenate(
    [weights[..., :H], weights[..., 2 * H :] / 2], -1
  )
  other = ugrnn.UGRNNParams(*map(remaining, params[:3]), None, None, None)
  xs = jnp.sin(jnp.arange(T * B * D, dtype=jnp.float64)).reshape(T, B, D)
  np.testing.assert_allclose(
    gated_input.apply(params, xs)[0], ugrnn.apply(other, xs)[0], rtol=1e-13
  )


def test_update_bias():
  params = gated_input.init(jax.random.key(0), D, H, update_bias=2.5)
  np.testing.assert_array_equal(params.bias, [2.5] * H + [0] * 2 * H)
  assert gated_input.init(jax.random.key(0), D, H, bias=False)[2:4] == (
    None,
    None,
  )
