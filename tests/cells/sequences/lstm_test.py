"""The LSTM against PyTorch's and Flax's, over long times, and in training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import revmom
from revmom.cells import lstm

T, B, D, H = 5, 3, 2, 4
LENGTHS = (5, 1, 3)


def draw(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def parameters(seed, **options):
  params = jax.jit(
    lambda key: lstm.init(key, D, H, dtype=jnp.float64, **options)
  )(jax.random.key(seed))
  return params._replace(bias=draw(seed, 4 * H))


def carries(seed, outputs=H):
  return lstm.LSTMCarry(draw(seed, B, outputs), draw(seed + 1, B, H))


def gradients(function, arguments, bars):
  results, pull = jax.vjp(function, *arguments)
  return results, pull(bars)


def close(got, expected):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def both_ways(forwards, backwards, xs, carry, carry_back):
  """Of packed sequences."""
  options = {"lengths": jnp.array(LENGTHS)}
  first, last = lstm.apply(forwards, xs, carry, **options)
  second, start = lstm.apply(backwards, xs, carry_back, reverse=True, **options)
  return jnp.concatenate([first, second], -1), last, start


def exchanged(columns):
  """Between our order i, f, o, g and i, f, g, o, along the first axis."""
  i, f, third, last = np.split(np.asarray(columns), 4)
  return np.concatenate([i, f, last, third])


def copied(torch, peer, params, suffix):
  """Copies weights; returns a function that reads their gradients."""
  named = lambda name: getattr(peer, f"{name}_l0{suffix}")
  with torch.no_grad():
    tensor = lambda array: torch.tensor(np.array(array))
    named("weight_ih").copy_(tensor(exchanged(params.input_weights.T)))
    named("weight_hh").copy_(tensor(exchanged(params.recurrent_weights.T)))
    named("bias_ih").copy_(tensor(exchanged(params.bias)))
    named("bias_hh").zero_()
    if params.projection is not None:
      named("weight_hr").copy_(tensor(params.projection.T))

  def read():
    grad = lambda name: named(name).grad.numpy()
    projection = None
    if params.projection is not None:
      projection = grad("weight_hr").T
    return params._replace(
      input_weights=exchanged(grad("weight_ih")).T,
      recurrent_weights=exchanged(grad("weight_hh")).T,
      bias=exchanged(grad("bias_ih")),
      projection=projection,
    )

  return read


@pytest.mark.parametrize("projection", [None, 3])
def test_pytorch_both_ways_on_packed_sequences(x64, projection):
  torch = pytest.importorskip("torch")
  outputs = projection or H
  params = [parameters(n, projection_size=projection) for n in (1, 2)]
  arguments = (
    *params,
    draw(3, T, B, D),
    carries(4, outputs),
    carries(6, outputs),
  )
  bars = draw(8, T, B, 2 * outputs), carries(9, outputs), carries(11, outputs)
  ours = jax.jit(lambda *a: gradients(both_ways, *a))(arguments, bars)

  peer = torch.nn.LSTM(
    D, H, bidirectional=True, dtype=torch.float64, proj_size=projection or 0
  )
  reads = [
    copied(torch, peer, p, suffix)
    for p, suffix in zip(params, ("", "_reverse"), strict=True)
  ]
  tensor = lambda array: torch.tensor(np.array(array))
  stacked = lambda pair: [
    tensor(np.stack(arrays)) for arrays in zip(*pair, strict=True)
  ]
  xs = tensor(arguments[2]).requires_grad_()
  states = [state.requires_grad_() for state in stacked(arguments[3:])]
  packed = torch.nn.utils.rnn.pack_padded_sequence(
    xs, torch.tensor(LENGTHS), enforce_sorted=False
  )
  results, final = peer(packed, tuple(states))
  results, _ = torch.nn.utils.rnn.pad_packed_sequence(results)
  torch.autograd.backward(
    [results, *final], [tensor(bars[0]), *stacked(bars[1:])]
  )
  pairs = lambda arrays: [
    lstm.LSTMCarry(*(array[n].detach().numpy() for array in arrays))
    for n in range(2)
  ]
  grads = [state.grad for state in states]
  expected = (
    (results.detach().numpy(), *pairs(final)),
    (reads[0](), reads[1](), xs.grad.numpy(), *pairs(grads)),
  )
  close(ours, expected)


def columns(params):
  """By gate, in the order of the fields."""
  split = lambda array: jnp.split(array, 4, -1)
  return zip(
    "ifog",
    split(params.input_weights),
    split(params.recurrent_weights),
    split(params.bias),
    strict=True,
  )


def scanned(step, xs, carry):
  """Their carry has the cell first."""
  (cell, hidden), outputs = jax.lax.scan(step, (carry.cell, carry.hidden), xs)
  return outputs, lstm.LSTMCarry(hidden, cell)


@pytest.mark.parametrize("kind", [nn.OptimizedLSTMCell, nn.LSTMCell])
def test_flax_linen(x64, kind):
  def peer(params, xs, carry):
    cell = kind(H, dtype=jnp.float64, param_dtype=jnp.float64)
    weights = {}
    for gate, of_input, of_state, bias in columns(params):
      weights["i" + gate] = {"kernel": of_input}
      weights["h" + gate] = {"kernel": of_state, "bias": bias}
    step = lambda carry, x: cell.apply({"params": weights}, carry, x)
    return scanned(step, xs, carry)

  check_flax(peer)


def test_flax_nnx(x64):
  def peer(params, xs, carry):
    cell = nnx.OptimizedLSTMCell(
      D, H, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
    )
    order = lambda array: jnp.concatenate(
      [array[..., : 2 * H], array[..., 3 * H :], array[..., 2 * H : 3 * H]], -1
    )
    cell.dense_i.kernel[...] = order(params.input_weights)
    cell.dense_h.kernel[...] = order(params.recurrent_weights)
    cell.dense_h.bias[...] = order(params.bias)
    state, outputs = (carry.cell, carry.hidden), []
    for x in xs:
      state, output = cell(state, x)
      outputs.append(output)
    return jnp.stack(outputs), lstm.LSTMCarry(state[1], state[0])

  check_flax(peer)


def check_flax(peer):
  arguments = parameters(1), draw(3, T, B, D), carries(4)
  bars = draw(8, T, B, H), carries(9)
  ours = jax.jit(lambda *a: gradients(lstm.apply, *a))(arguments, bars)
  close(ours, jax.jit(lambda *a: gradients(peer, *a))(arguments, bars))


def gates(i, f, o, g=0.0):
  """The parameters of one unit whose gates hardly see anything else."""
  return lstm.LSTMParams(
    jnp.full((1, 4), 1e-3),
    jnp.full((1, 4), 1e-3),
    jnp.array([i, f, o, g]),
    *[None] * 7,
  )


def test_a_cell_carries_its_adjoint_over_a_thousand_steps(x64):
  """f = 1, i = o = 0: the constant error carousel."""
  steps = 1000
  params = gates(i=-45.0, f=45.0, o=-45.0)
  xs = draw(0, steps, 1, 1)
  start = lstm.LSTMCarry(jnp.zeros((1, 1)), jnp.ones((1, 1)))
  outputs, _, residuals = lstm.forward(params, xs, start)
  carry_bar = lstm.LSTMCarry(jnp.zeros((1, 1)), jnp.full((1, 1), 0.7))
  gradients = lstm.backward(
    params, residuals, jnp.ones_like(outputs), carry_bar, adjoints=True
  )
  cells = np.asarray(gradients.adjoints.cell)
  np.testing.assert_allclose(cells, 0.7, rtol=1e-12)
  np.testing.assert_allclose(gradients.initial_carry.cell, 0.7, rtol=1e-12)
  # What comes from the step itself is 1.
  np.testing.assert_allclose(gradients.adjoints.hidden, 1, atol=1e-12)


def test_forgetting_loses_the_adjoint(x64):
  """f = sigmoid(0) = 1 / 2 a step."""
  params = gates(i=-45.0, f=0.0, o=-45.0)._replace(
    input_weights=jnp.zeros((1, 4)), recurrent_weights=jnp.zeros((1, 4))
  )
  _, _, residuals = lstm.forward(params, jnp.zeros((50, 1, 1)))
  carry_bar = lstm.LSTMCarry(jnp.zeros((1, 1)), jnp.ones((1, 1)))
  adjoints = lstm.backward(
    params, residuals, jnp.zeros((50, 1, 1)), carry_bar, adjoints=True
  ).adjoints
  np.testing.assert_allclose(
    adjoints.cell[:, 0, 0], 0.5 ** np.arange(49.0, -1, -1), rtol=1e-12
  )


def test_univariate_without_bias(x64):
  """The equations of scalars."""
  params = jax.jit(
    lambda key: lstm.init(key, 1, 1, bias=False, dtype=jnp.float64)
  )(jax.random.key(0))
  (wi, wf, wo, wg), (ri, rf, ro, rg) = np.asarray(params[:2])[:, 0]
  sigmoid = lambda value: 1 / (1 + np.exp(-value))
  xs, h, c = np.sin(np.arange(6.0)), 0.0, 0.0
  outputs, _ = lstm.apply(params, jnp.asarray(xs)[:, None, None])
  for x, output in zip(xs, outputs[:, 0, 0], strict=True):
    i, f, o = (
      sigmoid(w * x + r * h) for w, r in ((wi, ri), (wf, rf), (wo, ro))
    )
    c = f * c + i * np.tanh(wg * x + rg * h)
    h = o * np.tanh(c)
    np.testing.assert_allclose(output, h, rtol=1e-13)


def test_forget_bias():
  params = lstm.init(jax.random.key(0), D, H, forget_bias=2.5)
  expected = [0] * H + [2.5] * H + [0] * 2 * H
  np.testing.assert_array_equal(params.bias, expected)
  params = lstm.init(jax.random.key(0), D, H, bias=False, forget_bias=2.5)
  assert params.bias is None


STEPS, CLASSES = 12, 3


def classifier(sweep):
  def loss_fn(params, batch):
    xs, labels = batch
    outputs, _ = sweep(params["lstm"], xs)
    logits = outputs[-1] @ params["out"]
    logs = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(logs, labels[:, None], 1))

  return loss_fn


def plain(params, xs):
  def step(carry, x):
    h, c = carry
    a = x @ params.input_weights + h @ params.recurrent_weights + params.bias
    i, f, o, g = jnp.split(a, 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h

  zeros = jnp.zeros((xs.shape[1], H), xs.dtype)
  carry, outputs = jax.lax.scan(step, (zeros, zeros), xs)
  return outputs, carry


@pytest.mark.slow
def test_hypergradient_of_a_classifier():
  """Equals autodiff of a stored run of plain steps, and comes back."""
  xs = draw(1, STEPS, T, B, D).astype(jnp.float32)
  labels = jnp.arange(STEPS * B, dtype=jnp.int32).reshape(STEPS, B) % CLASSES
  start = {
    "lstm": lstm.init(jax.random.key(0), D, H),
    "out": 0.4 * draw(2, H, CLASSES).astype(jnp.float32),
  }
  last = jax.tree.map(lambda data: data[0], (xs, labels))

  def by_reversal(rates, start):
    optimizer = revmom.sgd(*rates)
    loss_fn = classifier(lstm.apply)
    run = revmom.train(loss_fn, optimizer, start, (xs, labels))
    return loss_fn(run.params, last), run.state

  def stored(rates, start):
    loss_fn = classifier(plain)
    rate, momentum = rates

    def step(state, batch):
      params, velocity = state
      bars = jax.grad(loss_fn)(params, batch)
      velocity = jax.tree.map(
        lambda v, bar: momentum * v - rate * bar, velocity, bars
      )
      return (jax.tree.map(jnp.add, params, velocity), velocity), None

    state = start, jax.tree.map(jnp.zeros_like, start)
    (params, _), _ = jax.lax.scan(step, state, (xs, labels))
    return loss_fn(params, last)

  rates = jnp.float32(0.3), jnp.float32(0.9)
  (value, state), ours = jax.jit(
    jax.value_and_grad(by_reversal, (0, 1), has_aux=True)
  )(rates, start)
  expected, theirs = jax.jit(jax.value_and_grad(stored, (0, 1)))(rates, start)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.max(np.abs(b)))

  rewind = jax.jit(
    lambda state: revmom.rewind(
      classifier(lstm.apply), revmom.sgd(*rates), state, (xs, labels)
    )
  )
  rewound = rewind(state)
  assert bool(rewound.receipt.ok)
  # Not leaf by leaf: arrays may be packed otherwise where they are known.
  optimizer = revmom.sgd(*rates)
  initial = optimizer.params(optimizer.init(start, STEPS))
  jax.tree.map(np.testing.assert_array_equal, rewound.params, initial)


def test_ranks_may_be_promoted_by_the_library():
  params = jax.jit(lambda key: lstm.init(key, 3, 5))(jax.random.key(0))
  loss = lambda params: jnp.sum(lstm.apply(params, jnp.ones((2, 4, 3)))[0] ** 2)
  expected = jax.grad(loss)(params)
  with jax.numpy_rank_promotion("raise"):
    got = jax.grad(jax.jit(loss))(params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), got, expected
  )
