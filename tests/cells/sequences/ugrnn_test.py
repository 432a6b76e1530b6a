"""The update-gate network as it is published, and what it starts from."""

import jax
import jax.numpy as jnp
import numpy as np

from revmom.cells import ugrnn

T, B, D, H = 5, 3, 2, 4


def test_equations_with_subtracted_biases(x64):
  """R = tanh(Wh h + Wx x - B_R), G = sigmoid(...), h' = G h + (1 - G) R."""
  rng = np.random.default_rng(0)
  w = {name: rng.normal(size=(D, H)) for name in ("xr", "xg")}
  w |= {name: rng.normal(size=(H, H)) for name in ("hr", "hg")}
  br, bg, h, xs = (
    rng.normal(size=shape) for shape in ((H,), (H,), (B, H), (T, B, D))
  )
  params = ugrnn.UGRNNParams(
    jnp.concatenate([w["xg"], w["xr"]], 1),
    jnp.concatenate([w["hg"], w["hr"]], 1),
    -jnp.concatenate([bg, br]),
    None,
    None,
    None,
  )
  outputs, carry = ugrnn.apply(params, jnp.asarray(xs), jnp.asarray(h))
  for x, output in zip(xs, outputs, strict=True):
    candidate = np.tanh(h @ w["hr"] + x @ w["xr"] - br)
    gate = 1 / (1 + np.exp(-(h @ w["hg"] + x @ w["xg"] - bg)))
    h = gate * h + (1 - gate) * candidate
    np.testing.assert_allclose(output, h, rtol=1e-13, atol=1e-14)
  np.testing.assert_array_equal(carry, outputs[-1])


def test_update_bias():
  params = ugrnn.init(jax.random.key(0), D, H, update_bias=2.5)
  np.testing.assert_array_equal(params.bias, [2.5] * H + [0] * H)
  default = ugrnn.init(jax.random.key(0), D, H).bias
  np.testing.assert_array_equal(default, [1] * H + [0] * H)


def test_a_closed_gate_keeps_the_state_and_its_adjoint():
  params = ugrnn.init(jax.random.key(0), D, H, update_bias=200.0)
  xs, carry = jnp.ones((T, B, D)), jnp.linspace(-1, 1, B * H).reshape(B, H)
  outputs, final, residuals = ugrnn.forward(params, xs, carry)
  np.testing.assert_array_equal(final, carry)
  gradients = ugrnn.backward(params, residuals, jnp.ones_like(outputs))
  np.testing.assert_array_equal(gradients.initial_carry, jnp.full((B, H), 5))
