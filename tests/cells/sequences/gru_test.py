"""The gated recurrent unit against PyTorch's and Flax's, and its two forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from revmom.cells import gru

T, B, D, H = 5, 3, 2, 4


def draw(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def problem():
  params = jax.jit(lambda key: gru.init(key, D, H, dtype=jnp.float64))(
    jax.random.key(0)
  )
  params = params._replace(bias=draw(1, 3 * H), candidate_bias=draw(6, H))
  arguments = params, draw(2, T, B, D), draw(3, B, H)
  return arguments, (draw(4, T, B, H), draw(5, B, H))


def gradients(function, arguments, bars):
  results, pull = jax.vjp(function, *arguments)
  return results, pull(bars)


def close(got, expected):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def ours(arguments, bars):
  return jax.jit(lambda *a: gradients(gru.apply, *a))(arguments, bars)


def other_sign(columns):
  """Of z, which those packages call 1 - z."""
  return columns.at[..., H : 2 * H].multiply(-1)


@pytest.mark.slow
def test_pytorch(x64):
  torch = pytest.importorskip("torch")
  (params, xs, h), bars = problem()
  tensor = lambda array: torch.tensor(np.array(array))
  peer = torch.nn.GRU(D, H, dtype=torch.float64)
  with torch.no_grad():
    peer.weight_ih_l0.copy_(tensor(other_sign(params.input_weights).T))
    peer.weight_hh_l0.copy_(tensor(other_sign(params.recurrent_weights).T))
    peer.bias_ih_l0.copy_(tensor(other_sign(params.bias)))
    peer.bias_hh_l0.zero_()
    peer.bias_hh_l0[2 * H :] = tensor(params.candidate_bias)
  inputs, state = tensor(xs).requires_grad_(), tensor(h[None]).requires_grad_()
  outputs, final = peer(inputs, state)
  torch.autograd.backward(
    [outputs, final], [tensor(bars[0]), tensor(bars[1][None])]
  )
  (values, last), (params_bar, xs_bar, h_bar) = ours((params, xs, h), bars)
  array = lambda tensor: jnp.asarray(tensor.detach().numpy())
  expected = [
    array(outputs),
    array(final)[0],
    other_sign(array(peer.weight_ih_l0.grad).T),
    other_sign(array(peer.weight_hh_l0.grad).T),
    other_sign(array(peer.bias_ih_l0.grad)),
    array(peer.bias_hh_l0.grad)[2 * H :],
    array(inputs.grad),
    array(state.grad)[0],
  ]
  close(
    [
      values,
      last,
      params_bar.input_weights,
      params_bar.recurrent_weights,
      params_bar.bias,
      params_bar.candidate_bias,
      xs_bar,
      h_bar,
    ],
    expected,
  )


def thirds(columns):
  return jnp.split(other_sign(columns), 3, -1)


def linen(params, xs, h):
  cell = nn.GRUCell(H, dtype=jnp.float64, param_dtype=jnp.float64)
  columns = zip(
    "rzn",
    thirds(params.input_weights),
    thirds(params.bias),
    thirds(params.recurrent_weights),
    strict=True,
  )
  weights = {}
  for gate, of_input, bias, of_state in columns:
    weights["i" + gate] = {"kernel": of_input, "bias": bias}
    weights["h" + gate] = {"kernel": of_state}
  weights["hn"]["bias"] = params.candidate_bias
  step = lambda carry, x: cell.apply({"params": weights}, carry, x)
  h, outputs = jax.lax.scan(step, h, xs)
  return outputs, h


def nnx_cell(params, xs, h):
  cell = nnx.GRUCell(
    D, H, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
  )
  cell.dense_i.kernel[...] = other_sign(params.input_weights)
  cell.dense_i.bias[...] = other_sign(params.bias)
  cell.dense_h.kernel[...] = other_sign(params.recurrent_weights)
  outputs = []
  for x in xs:
    h, output = cell(h, x)
    outputs.append(output)
  return jnp.stack(outputs), h


@pytest.mark.parametrize("peer", [linen, nnx_cell])
def test_flax(x64, peer):
  (params, xs, h), bars = problem()
  if peer is nnx_cell:  # which has no bias inside of the reset
    params = params._replace(candidate_bias=jnp.zeros(H))
  results, (params_bar, *others) = ours((params, xs, h), bars)
  theirs = jax.jit(lambda *a: gradients(peer, *a))((params, xs, h), bars)
  if peer is nnx_cell:
    params_bar = params_bar._replace(candidate_bias=jnp.zeros(H))
  close((results, (params_bar, *others)), theirs)


def test_both_forms_agree_where_nothing_is_reset(x64):
  (params, xs, h), _ = problem()
  open_ = params.bias.at[:H].set(300.0)  # r = 1
  after = params._replace(bias=open_, candidate_bias=None)
  before = after._replace(
    recurrent_weights=params.recurrent_weights[:, : 2 * H],
    candidate_weights=params.recurrent_weights[:, 2 * H :],
  )
  close(gru.apply(after, xs, h), gru.apply(before, xs, h))


def test_unknown_form():
  with pytest.raises(ValueError, match="'before' or 'after' .* got 'never'"):
    gru.init(jax.random.key(0), D, H, reset="never")
