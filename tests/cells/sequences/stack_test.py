"""Stacks against PyTorch's, and against layers composed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.cells import conversion, elman, gru, lstm, stack, ugrnn

torch = pytest.importorskip("torch")

STEPS, BATCH, INPUTS, HIDDEN = 7, 3, 4, 5
LENGTHS = np.array([5, 7, 2])
TORCH = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "elman": torch.nn.RNN}


def close(got, expected, tolerance=1e-12):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance),
    got,
    expected,
  )


def inputs(dtype="float64"):
  rng = np.random.default_rng(0)
  return rng.normal(size=(STEPS, BATCH, INPUTS)).astype(dtype)


def torch_layer(cell, **options):
  torch.manual_seed(0)
  return TORCH[cell.name](INPUTS, HIDDEN, dtype=torch.float64, **options)


def torch_outputs(layer, xs, lengths):
  """Outputs [T, B, H] and states of a layer, and the gradients of a loss."""
  xs = torch.tensor(xs, requires_grad=True)
  if lengths is None:
    outputs, states = layer(xs)
  else:
    packed = torch.nn.utils.rnn.pack_padded_sequence(
      xs, torch.tensor(lengths), enforce_sorted=False
    )
    outputs, states = layer(packed)
    outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs)
  states = states if isinstance(states, tuple) else (states,)
  loss = (outputs**2).sum() + sum(state.sin().sum() for state in states)
  loss.backward()
  gradients = {n: p.grad.numpy() for n, p in layer.named_parameters()}
  results = [array.detach().numpy() for array in (outputs, *states)]
  return results, gradients, xs.grad.numpy()


@pytest.mark.sampled(3)
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize(
  "cell, options",
  [
    (lstm.cell, {"num_layers": 2, "bidirectional": True}),
    (lstm.cell, {"num_layers": 2, "bidirectional": True, "proj_size": 3}),
    (lstm.cell, {"num_layers": 3, "bias": False}),
    (gru.cell, {"num_layers": 2, "bidirectional": True}),
    (elman.cell, {"num_layers": 2, "bidirectional": True}),
  ],
)
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_outputs_states_and_gradients_are_torch_s(x64, cell, options, lengths):
  layer = torch_layer(cell, **options)
  weights = {name: p.detach().numpy() for name, p in layer.named_parameters()}
  expected = torch_outputs(layer, inputs(), lengths)

  def loss(weights, xs):
    params = conversion.from_torch(cell, weights)
    outputs, carries = stack.apply(cell, params, xs, lengths=lengths)
    flat = [carry for layer in carries for carry in layer]
    states = jax.tree.map(lambda *of_all: jnp.stack(of_all), *flat)
    states = jax.tree.leaves(states)
    total = jnp.sum(outputs**2) + sum(jnp.sum(jnp.sin(s)) for s in states)
    return total, [outputs, *states]

  gradients, results = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(
    weights, jnp.asarray(inputs())
  )
  close((results, *gradients), expected)


@pytest.mark.slow
@pytest.mark.parametrize("merge", [stack.concatenate, jnp.add])
def test_is_layers_composed_by_hand(x64, merge):
  params = stack.init(
    ugrnn.cell,
    jax.random.key(0),
    INPUTS,
    HIDDEN,
    2,
    bidirectional=True,
    merge=merge,
    layer_norm=True,
    dtype="float64",
  )
  xs = jnp.asarray(inputs())

  def by_hand(params, xs):
    carries = []
    for forward, reverse in params:
      ahead, final = ugrnn.apply(forward, xs, lengths=LENGTHS)
      back, first = ugrnn.apply(reverse, xs, lengths=LENGTHS, reverse=True)
      xs = merge(ahead, back)
      carries.append((final, first))
    return xs, tuple(carries)

  ours = lambda params, xs: stack.apply(
    ugrnn.cell, params, xs, lengths=LENGTHS, merge=merge
  )

  def results(params, xs):
    """All outputs, and gradients of a loss of them."""
    for function in (ours, by_hand):
      outputs, pull = jax.vjp(function, params, xs)
      yield outputs, pull(jax.tree.map(jnp.cos, outputs))

  close(*jax.jit(lambda *args: tuple(results(*args)))(params, xs))


@pytest.mark.slow
def test_initial_carries_reach_their_cells():
  params = stack.init(
    lstm.cell, jax.random.key(0), INPUTS, HIDDEN, 2, bidirectional=True
  )
  xs = jnp.asarray(inputs("float32"))
  rng = np.random.default_rng(1)
  draw = lambda: lstm.LSTMCarry(
    *rng.normal(size=(2, BATCH, HIDDEN)).astype("float32")
  )
  carries = ((draw(), None), (None, draw()))
  (a, b), (c, d) = params
  ahead, final_a = lstm.apply(a, xs, carries[0][0])
  back, final_b = lstm.apply(b, xs, reverse=True)
  hidden = jnp.concatenate([ahead, back], -1)
  ahead, final_c = lstm.apply(c, hidden)
  back, final_d = lstm.apply(d, hidden, carries[1][1], reverse=True)
  expected = (
    jnp.concatenate([ahead, back], -1),
    ((final_a, final_b), (final_c, final_d)),
  )
  close(stack.apply(lstm.cell, params, xs, carries), expected, 1e-6)


@pytest.mark.slow
def test_batch_major_and_recompute_change_nothing_else():
  params = stack.init(gru.cell, jax.random.key(0), INPUTS, HIDDEN, 2)
  xs = jnp.asarray(inputs("float32"))
  outputs, carries = stack.apply(gru.cell, params, xs, lengths=LENGTHS)
  swapped, same = stack.apply(
    gru.cell,
    params,
    xs.swapaxes(0, 1),
    lengths=LENGTHS,
    batch_major=True,
    recompute=True,
  )
  close((swapped.swapaxes(0, 1), same), (outputs, carries), 1e-6)


@pytest.mark.slow
def test_layer_dropout():
  """Only between layers, on a share of the elements, and never without a key.

  A second layer that adds its inputs up shows what is left of them.
  """
  params = stack.init(elman.cell, jax.random.key(0), INPUTS, 400, 2)
  (first,), (second,) = params
  tiny = 1e-3
  second = second._replace(
    input_weights=tiny * jnp.eye(400),
    recurrent_weights=jnp.zeros((400, 400)),
    bias=jnp.zeros(400),
  )
  xs = jnp.asarray(inputs("float32"))
  hidden, _ = elman.apply(first, xs)

  @jax.jit
  def run(key=None):
    layers = ((first,), (second,))
    return stack.apply(elman.cell, layers, xs, layer_dropout=0.25, key=key)[0]

  close(run() / tiny, hidden, 1e-4)
  dropped = run(key=jax.random.key(1)) / tiny
  left = dropped != 0
  close(jnp.where(left, dropped * 0.75, hidden), hidden, 1e-4)
  assert abs(float(left.mean()) - 0.75) < 0.02  # 8400 elements
  assert not np.array_equal(left[0], left[1])
  again = run(key=jax.random.key(2)) / tiny
  assert not np.array_equal(again != 0, left)
  alone = stack.apply(
    elman.cell, ((first,),), xs, layer_dropout=0.25, key=jax.random.key(1)
  )[0]
  close(alone, hidden, 1e-6)


def test_zoneout_has_masks_of_its_own_in_each_layer_and_direction():
  one = elman.init(jax.random.key(0), HIDDEN, HIDDEN)
  # Without inputs or recurrence the state is tanh(1) where it is not held.
  one = one._replace(
    input_weights=jnp.zeros((HIDDEN, HIDDEN)),
    recurrent_weights=jnp.zeros((HIDDEN, HIDDEN)),
    bias=jnp.ones(HIDDEN),
  )
  _, carries = stack.apply(
    elman.cell,
    ((one, one), (one, one)),
    jnp.zeros((1, 50, HIDDEN)),
    merge=jnp.add,
    zoneout=0.5,
    key=jax.random.key(0),
  )
  held = [np.asarray(c) == 0 for layer in carries for c in layer]
  assert all(0.35 < mask.mean() < 0.65 for mask in held)
  assert all(
    0.35 < (a != b).mean() < 0.65 for k, a in enumerate(held) for b in held[:k]
  )


@pytest.mark.slow
def test_second_derivatives(x64):
  params = stack.init(
    gru.cell,
    jax.random.key(0),
    2,
    3,
    2,
    bidirectional=True,
    dtype="float64",
  )
  xs = jnp.asarray(inputs()[:4, :, :2])
  lengths = jnp.array([1, 4, 2])

  def plain(params, xs):
    """The same by `forward`, which JAX differentiates itself."""
    for ahead, back in params:
      outputs = [
        gru.forward(ahead, xs, lengths=lengths)[0],
        gru.forward(back, xs, lengths=lengths, reverse=True)[0],
      ]
      xs = jnp.concatenate(outputs, -1)
    return xs

  def product(apply):
    gradient = jax.grad(lambda params: jnp.sum(jnp.sin(apply(params, xs))))
    tangents = jax.tree.map(jnp.cos, params)
    return jax.jvp(gradient, (params,), (tangents,))[1]

  ours = lambda params, xs: stack.apply(gru.cell, params, xs, lengths=lengths)[
    0
  ]
  close(*jax.jit(lambda: (product(ours), product(plain)))())


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda p, x: stack.init(gru.cell, jax.random.key(0), 4, 5, 0), "least 1"),
    (lambda p, x: stack.apply(gru.cell, p, x, layer_dropout=1.0), r"\[0, 1\)"),
    (lambda p, x: stack.apply(gru.cell, (), x), "a layer at least"),
    (lambda p, x: stack.apply(gru.cell, (p[0] * 3,), x), "1 or 2 in each"),
    (lambda p, x: stack.apply(gru.cell, p, x, ((None,),)), "one for each"),
    (lambda p, x: stack.apply(gru.cell, p, x, jnp.ones((2, 3, 5))), "PyTorch"),
    (lambda p, x: stack.apply(gru.cell, p, x[..., :3]), "inputs have"),
    (lambda p, x: stack.apply(gru.cell, p, x, zoneout=-0.1), "zoneout"),
  ],
)
def test_errors(call, message):
  params = stack.init(gru.cell, jax.random.key(0), INPUTS, HIDDEN, 2)
  with pytest.raises(ValueError, match=message):
    call(params, jnp.asarray(inputs("float32")))
