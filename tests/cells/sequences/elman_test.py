"""The plain recurrent network against PyTorch's and Flax's; its gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from revmom.cells import elman

T, B, D, H = 5, 3, 2, 4


def draw(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def problem():
  params = jax.jit(lambda key: elman.init(key, D, H, dtype=jnp.float64))(
    jax.random.key(0)
  )
  params = params._replace(bias=draw(1, H))
  arguments = params, draw(2, T, B, D), draw(3, B, H)
  return arguments, (draw(4, T, B, H), draw(5, B, H))


def gradients(function, arguments, bars):
  results, pull = jax.vjp(function, *arguments)
  return results, pull(bars)


def close(got, expected):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_pytorch(x64):
  torch = pytest.importorskip("torch")
  (params, xs, h), bars = problem()
  tensor = lambda array: torch.tensor(np.array(array))
  peer = torch.nn.RNN(D, H, dtype=torch.float64)
  with torch.no_grad():
    peer.weight_ih_l0.copy_(tensor(params.input_weights.T))
    peer.weight_hh_l0.copy_(tensor(params.recurrent_weights.T))
    peer.bias_ih_l0.copy_(tensor(params.bias))
    peer.bias_hh_l0.zero_()
  inputs, state = tensor(xs).requires_grad_(), tensor(h[None]).requires_grad_()
  outputs, final = peer(inputs, state)
  torch.autograd.backward(
    [outputs, final], [tensor(bars[0]), tensor(bars[1][None])]
  )
  result = jax.jit(lambda *a: gradients(elman.apply, *a))((params, xs, h), bars)
  (ours, last), (params_bar, xs_bar, h_bar) = result
  expected = [
    outputs.detach(),
    final.detach()[0],
    peer.weight_ih_l0.grad.T,
    peer.weight_hh_l0.grad.T,
    peer.bias_ih_l0.grad,
    inputs.grad,
    state.grad[0],
  ]
  got = [ours, last, *params_bar[:3], xs_bar, h_bar]
  close(got, [tensor.numpy() for tensor in expected])


def linen(params, xs, h):
  cell = nn.SimpleCell(H, dtype=jnp.float64, param_dtype=jnp.float64)
  weights = {
    "i": {"kernel": params.input_weights, "bias": params.bias},
    "h": {"kernel": params.recurrent_weights},
  }
  step = lambda carry, x: cell.apply({"params": weights}, carry, x)
  h, outputs = jax.lax.scan(step, h, xs)
  return outputs, h


def nnx_cell(params, xs, h):
  cell = nnx.SimpleCell(
    D, H, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
  )
  cell.dense_i.kernel[...] = params.input_weights
  cell.dense_i.bias[...] = params.bias
  cell.dense_h.kernel[...] = params.recurrent_weights
  outputs = []
  for x in xs:
    h, output = cell(h, x)
    outputs.append(output)
  return jnp.stack(outputs), h


@pytest.mark.parametrize("peer", [linen, nnx_cell])
def test_flax(x64, peer):
  arguments, bars = problem()
  ours = jax.jit(lambda *a: gradients(elman.apply, *a))(arguments, bars)
  close(ours, jax.jit(lambda *a: gradients(peer, *a))(arguments, bars))


@pytest.mark.parametrize(("scale", "growth"), [(0.5, -1), (1.5, 1)])
def test_gradients_vanish_or_explode(x64, scale, growth):
  """At the origin the adjoint of a step is R^T: here a multiple of one."""
  steps = 1000
  params = elman.ElmanParams(
    jnp.zeros((1, 2)), scale * jnp.eye(2), None, None, None, None
  )
  _, _, residuals = elman.forward(params, jnp.zeros((steps, 1, 1)))
  bars = jnp.zeros((steps, 1, 2)).at[-1].set(1.0)
  adjoints = elman.backward(params, residuals, bars, adjoints=True).adjoints
  expected = scale ** np.arange(steps - 1.0, -1, -1)
  for unit in range(2):
    got = adjoints.hidden[:, 0, unit]
    np.testing.assert_allclose(got, expected, rtol=1e-10)
  assert growth * np.log10(expected[0]) > 100
