"""Layers of NNX against `nnx.RNN` with converted weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from revmom.cells import (
  conversion,
  elman,
  gru,
  lstm,
  mdlstm,
  multidirectional,
  stack,
)
from revmom.cells import nnx as layers

STEPS, BATCH, INPUTS, HIDDEN = 6, 3, 4, 5
LENGTHS = np.array([4, 6, 1])
PEERS = {
  "lstm": (layers.LSTM, nnx.OptimizedLSTMCell),
  "gru": (layers.GRU, nnx.GRUCell),
  "elman": (layers.Elman, nnx.SimpleCell),
}
CELLS = {"lstm": lstm.cell, "gru": gru.cell, "elman": elman.cell}


def close(got, expected, tolerance=1e-12):
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance),
    got,
    expected,
  )


def inputs(*shape, dtype="float64"):
  return np.random.default_rng(0).normal(size=shape).astype(dtype)


def pair(name, **options):
  """Our layer and Flax's, with the same random weights."""
  ours, theirs = PEERS[name]
  dtypes = {"param_dtype": jnp.float64, "dtype": jnp.float64}
  peer = theirs(INPUTS, HIDDEN, rngs=nnx.Rngs(0), **dtypes)
  rng = np.random.default_rng(1)
  weights = jax.tree.map(
    lambda w: rng.normal(size=w.shape) * 0.5,
    nnx.to_pure_dict(nnx.state(peer, nnx.Param)),
  )
  nnx.update(peer, weights)
  layer = ours(INPUTS, HIDDEN, rngs=nnx.Rngs(0), **dtypes, **options)
  layer.load(conversion.from_flax(CELLS[name], weights))
  return layer, nnx.RNN(peer, **options)


def carry_of(name, *batch):
  draw = lambda seed: np.random.default_rng(seed).normal(size=(*batch, HIDDEN))
  return (draw(2), draw(3)) if name == "lstm" else draw(2)


def masked(outputs, lengths, time):
  """Without what Flax computes beyond the sequences."""
  if lengths is None:
    return outputs
  steps = jnp.arange(outputs.shape[time])
  steps = steps[:, None] if time == 0 else steps
  valid = steps < (lengths if time == 0 else lengths[:, None])
  return jnp.where(valid[..., None], outputs, 0)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", list(PEERS))
@pytest.mark.parametrize(
  "call",
  [
    {},
    {"time_major": True, "seq_lengths": LENGTHS},
    {"reverse": True, "seq_lengths": LENGTHS},
    {"reverse": True, "seq_lengths": LENGTHS, "keep_order": True},
    {"reverse": True},
  ],
)
def test_calls_are_those_of_nnx(x64, name, call):
  time = 0 if call.get("time_major") else 1
  shape = (STEPS, BATCH) if time == 0 else (BATCH, STEPS)
  xs = jnp.asarray(inputs(*shape, INPUTS))
  layer, peer = pair(name)
  lengths = call.get("seq_lengths")
  options = {"initial_carry": carry_of(name, BATCH), **call}

  @nnx.jit
  def both(layer, peer):
    results = []
    for module in (layer, peer):
      carry, outputs = module(xs, return_carry=True, **options)
      results.append((carry, masked(outputs, lengths, time)))
    return results

  close(*both(layer, peer))


@pytest.mark.parametrize("name", list(PEERS))
def test_gradients_are_those_of_nnx(x64, name):
  layer, peer = pair(name)
  xs = jnp.asarray(inputs(BATCH, STEPS, INPUTS))

  def loss(module, xs):
    outputs = masked(module(xs, seq_lengths=LENGTHS), LENGTHS, 1)
    return jnp.sum(jnp.sin(outputs))

  gradients = nnx.jit(nnx.grad(loss, argnums=(0, 1)))
  (ours, xs_bar), (theirs, expected) = gradients(layer, xs), gradients(peer, xs)
  close(xs_bar, expected)
  # A gradient converts like weights: it is linear.
  theirs = nnx.to_pure_dict(theirs)["cell"]
  converted = conversion.from_flax(CELLS[name], theirs)
  expected = {k: v for k, v in converted._asdict().items() if v is not None}
  close(nnx.to_pure_dict(ours)["params"], expected)


def test_constructor_sets_defaults_of_calls(x64):
  options = {
    "time_major": True,
    "return_carry": True,
    "reverse": True,
    "keep_order": True,
  }
  layer, peer = pair("lstm", **options)
  xs = jnp.asarray(inputs(STEPS, BATCH, INPUTS))
  close(layer(xs), peer(xs))


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_number_of_batch_axes(x64, batch):
  layer, peer = pair("lstm")
  xs = jnp.asarray(inputs(*batch, STEPS, INPUTS))
  carry = carry_of("lstm", *batch)
  results = [
    module(xs, initial_carry=carry, return_carry=True)
    for module in (layer, peer)
  ]
  close(*results)


def test_named_carries_are_not_swapped():
  layer = layers.LSTM(INPUTS, HIDDEN, rngs=nnx.Rngs(0))
  xs = jnp.asarray(inputs(BATCH, STEPS, INPUTS, dtype="float32"))
  c, h = (jnp.asarray(a, "float32") for a in carry_of("lstm", BATCH))
  named = layer(xs, initial_carry=lstm.LSTMCarry(hidden=h, cell=c))
  close(named, layer(xs, initial_carry=(c, h)), 0)


def test_bidirectional_takes_two_layers(x64):
  forward, peer_forward = pair("gru")
  reverse, peer_reverse = pair("gru")
  xs = jnp.asarray(inputs(BATCH, STEPS, INPUTS))
  close(
    nnx.Bidirectional(forward, reverse)(xs),
    nnx.Bidirectional(peer_forward, peer_reverse)(xs),
  )


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  "layer", [layers.LSTM, layers.GRU, layers.UGRNN, layers.GatedInput]
)
def test_training_step(layer):
  """A layer learns to sum its inputs up, with options of its cell."""

  class Model(nnx.Module):
    def __init__(self, rngs):
      self.rnn = layer(1, 8, rngs=rngs, layer_norm=True, learned_carry=True)
      self.head = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, xs):
      return self.head(self.rnn(xs)[:, -1])

  xs = jnp.asarray(inputs(32, STEPS, 1, dtype="float32"))
  model = Model(nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, optax.sgd(0.05), wrt=nnx.Param)

  @nnx.jit
  def train_step(model, optimizer):
    loss = lambda model: jnp.mean((model(xs) - xs.mean(1)) ** 2)
    value, gradients = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradients)
    return value, jax.tree.leaves(gradients)

  losses = []
  for _ in range(20):
    value, gradients = train_step(model, optimizer)
    losses.append(float(value))
  assert losses[-1] < 0.5 * losses[0]
  assert all(jnp.any(gradient != 0) for gradient in gradients)


@pytest.mark.slow
def test_zoneout_and_dropout():
  make = partial(layers.LSTM, INPUTS, HIDDEN, zoneout=(0.2, 0.1), dropout=0.3)
  layer = make(rngs=nnx.Rngs(0, dropout=1))
  xs = jnp.asarray(inputs(BATCH, STEPS, INPUTS, dtype="float32"))
  run = nnx.jit(lambda layer, xs, **options: layer(xs, **options))
  # Every call draws anew, from the stream that was given at first.
  assert not np.array_equal(run(layer, xs), run(layer, xs))
  again = make(rngs=nnx.Rngs(0, dropout=1))
  twin = make(rngs=nnx.Rngs(0, dropout=1))
  close(run(again, xs), run(twin, xs), 0)
  # A key of the call's own, as the cell takes it.
  key = jax.random.key(7)
  cell = partial(lstm.apply, batch_major=True, zoneout=(0.2, 0.1), dropout=0.3)
  expected, _ = cell(layer.weights(), xs, key=key)
  close(layer(xs, rngs=key), expected, 1e-6)
  close(
    layer(xs, rngs=nnx.Rngs(dropout=7)),
    layer(xs, rngs=nnx.Rngs(dropout=7)["dropout"]),
    0,
  )
  # Evaluation is not random.
  expected, _ = cell(layer.weights(), xs)
  close(layer(xs, deterministic=True), expected, 1e-6)
  layer.eval()
  close(layer(xs), expected, 1e-6)
  layer.train()
  assert not np.allclose(layer(xs), expected)


@pytest.mark.slow
def test_types():
  """Flax's `dtype` casts, and without it types must agree."""
  layer = layers.GRU(INPUTS, HIDDEN, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
  xs = jnp.asarray(inputs(BATCH, STEPS, INPUTS, dtype="float32"))
  carry, outputs = layer(xs, return_carry=True)
  assert (outputs.dtype, carry.dtype) == (jnp.bfloat16, jnp.float32)
  assert layer.params.input_weights.dtype == jnp.float32
  half = layers.GRU(INPUTS, HIDDEN, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
  assert half.params.input_weights.dtype == jnp.bfloat16
  with pytest.raises(ValueError, match="cast one"):
    half(xs)


@pytest.mark.parametrize(
  "call, message",
  [
    ({"seq_lengths": np.array([7, 1, 1])}, "between 0 and 6"),
    ({"seq_lengths": np.array([1.0, 1.0, 1.0])}, "must be 3 integers"),
    ({"seq_lengths": np.array([1, 1])}, "broadcast"),
    ({"initial_carry": (np.zeros((3, 4)), np.zeros((3, 4)))}, "the carry has"),
    ({"initial_carry": (np.zeros((1, 3, 5)),) * 2}, "no axis of layers"),
  ],
)
def test_errors(call, message):
  layer = layers.LSTM(INPUTS, HIDDEN, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=message):
    layer(jnp.zeros((BATCH, STEPS, INPUTS)), **call)


def test_parameters_of_another_layer_are_refused():
  key = jax.random.key(0)
  layer = layers.LSTM(INPUTS, HIDDEN, rngs=nnx.Rngs(0), bias=False)
  params = lstm.init(key, INPUTS, HIDDEN)
  layer.load(params)  # with a bias, or without
  layer.load(params._replace(bias=None))
  for other, message in (
    (
      lstm.init(key, INPUTS + 1, HIDDEN),
      r"input_weights .*\(4, 20\).*\(5, 20\)",
    ),
    (lstm.init(key, INPUTS, HIDDEN + 1), r"input_weights .*\(4, 20\)"),
    (gru.init(key, INPUTS, HIDDEN), "are LSTMParams, but got GRUParams"),
    (stack.init(lstm.cell, key, INPUTS, HIDDEN), "but got a tuple of 1"),
    (params._asdict(), "but got dict"),
    (params._replace(recurrent_weights=None), "recurrent_weights .*NoneType"),
  ):
    with pytest.raises(ValueError, match=message):
      layer.load(other)


def test_what_only_cells_of_flax_have():
  with pytest.raises(ValueError, match="no activation_fn.*peephole"):
    layers.LSTM(INPUTS, HIDDEN, rngs=nnx.Rngs(0), activation_fn=jnp.tanh)
  with pytest.raises(ValueError, match="no kernel_init"):
    layers.MDLSTM(INPUTS, HIDDEN, rngs=nnx.Rngs(0), kernel_init=None)
  layer = layers.GRU(INPUTS, HIDDEN, rngs=nnx.Rngs(0))
  with pytest.raises(AttributeError, match="in place of nnx.RNN"):
    nnx.RNN(layer)(jnp.zeros((BATCH, STEPS, INPUTS)))


@pytest.mark.slow
def test_grids_are_batch_major():
  directions = [(1, 1), (-1, 1)]
  layer = layers.MDLSTM(
    2, 3, rngs=nnx.Rngs(0), directions=directions, cell="stable"
  )
  xs = jnp.asarray(inputs(2, 4, 3, 2, dtype="float32"))
  sizes = jnp.array([[4, 3], [2, 1]], jnp.int32)
  expected = multidirectional.apply_directions(
    mdlstm.apply,
    layer.weights(),
    jnp.moveaxis(xs, 0, -2),
    directions=directions,
    sizes=sizes,
  )
  run = nnx.jit(lambda layer, xs: layer(xs, sizes=sizes))
  close(run(layer, xs), jnp.moveaxis(expected, -2, 0), 1e-6)
  summed = layers.MDRNN(2, 3, rngs=nnx.Rngs(0), combine="sum")
  assert summed(xs).shape == (2, 4, 3, 3)
  gradients = nnx.grad(lambda layer: jnp.sum(layer(xs) ** 2))(summed)
  assert all(jnp.any(g != 0) for g in jax.tree.leaves(gradients))


@pytest.mark.slow
def test_linen_recipe(x64):
  """As in the docstring; gradients are those of the functions."""

  class Model(linen.Module):
    @linen.compact
    def __call__(self, xs):
      params = self.param(
        "lstm", lambda key: lstm.init(key, INPUTS, HIDDEN, dtype=xs.dtype)
      )
      return lstm.apply(params, xs)[0]

  xs = jnp.asarray(inputs(STEPS, BATCH, INPUTS))
  variables = Model().init(jax.random.key(0), xs)
  loss = lambda variables: jnp.sum(Model().apply(variables, xs) ** 2)
  direct = lambda params: jnp.sum(lstm.apply(params, xs)[0] ** 2)
  gradients = jax.grad(loss)(variables)["params"]["lstm"]
  close(gradients, jax.grad(direct)(variables["params"]["lstm"]))
