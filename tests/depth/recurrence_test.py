"""RevGRU and RevLSTM against plain loops, and what their gradients keep."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from revmom import depth
from revmom.depth import revgru, revlstm

CELLS = {"revgru": revgru, "revlstm": revlstm}
STEPS, BATCH, SIZE, HIDDEN = 11, 3, 4, 6


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def problem(cell, dtype="float64"):
  params = cell.init(jax.random.key(1), SIZE, HIDDEN, dtype=dtype)
  # Larger weights, and biases, lest all gates be about a half.
  params = jax.tree.map(
    lambda a: 3 * a + 0.3 * jnp.sin(jnp.arange(a.shape[-1], dtype=dtype)),
    params,
  )
  xs = normal(0, STEPS, BATCH, SIZE).astype(dtype)
  arrays = len(cell.initial_carry(params, BATCH))
  carry = tuple(
    normal(i, BATCH, HIDDEN // 2).astype(dtype) for i in range(arrays)
  )
  return params, xs, carry


def rounded(gate, bits):
  """A limited gate as a multiple of 2^-10, differentiated as it is."""
  gate = 2.0**-bits + (1 - 2.0**-bits) * gate
  return gate + lax.stop_gradient(jnp.round(gate * 1024) / 1024 - gate)


def gru_half(own, h, other, x, bits):
  """MacKay et al., each gate by a product of its own."""
  sigmoid = jax.nn.sigmoid
  w = jnp.split(own.input_weights, 3, 1)
  r = jnp.split(own.recurrent_weights, 2, 1)
  b = jnp.split(own.bias, 3)
  keep = sigmoid(x @ w[0] + other @ r[0] + b[0])
  reset = sigmoid(x @ w[1] + other @ r[1] + b[1])
  new = jnp.tanh(x @ w[2] + (reset * other) @ own.candidate_weights + b[2])
  # What is new is multiplied by the gate before that is rounded.
  return rounded(keep, bits) * h + (1 - 2.0**-bits) * (1 - keep) * new


def lstm_half(own, c, h, other, x, bits):
  split = lambda a: jnp.split(a, 5, -1)
  parts = zip(
    split(own.input_weights),
    split(own.recurrent_weights),
    split(own.bias),
    strict=True,
  )
  f, i, g, p, o = (x @ w + other @ r + b for w, r, b in parts)
  sigmoid = jax.nn.sigmoid
  c = rounded(sigmoid(f), bits) * c + sigmoid(i) * jnp.tanh(g)
  h = rounded(sigmoid(p), bits) * h + sigmoid(o) * jnp.tanh(c)
  return c, h


def plain(cell, params, xs, carry, lengths=None, bits=3):
  """A scan that keeps all states."""

  def step(carry, now):
    t, x = now
    if cell is revgru:
      h1 = gru_half(params[0], carry[0], carry[1], x, bits)
      after = h1, gru_half(params[1], carry[1], h1, x, bits)
      hidden = after
    else:
      c1, h1 = lstm_half(params[0], carry[0], carry[1], carry[3], x, bits)
      after = c1, h1, *lstm_half(params[1], carry[2], carry[3], h1, x, bits)
      hidden = after[1], after[3]
    hidden = jnp.concatenate(hidden, -1)
    if lengths is None:
      return after, hidden
    there = (t < lengths)[:, None]
    only = lambda new, old: jnp.where(there, new, old)
    return jax.tree.map(only, after, carry), only(hidden, 0)

  carry, outputs = lax.scan(step, carry, (jnp.arange(len(xs)), xs))
  return outputs, carry


@pytest.mark.parametrize(
  "name, lengths",
  [
    ("revgru", (11, 5, 1)),
    ("revlstm", None),
    pytest.param("revgru", None, marks=pytest.mark.slow),
    pytest.param("revlstm", (11, 5, 1), marks=pytest.mark.slow),
  ],
)
def test_values_and_gradients_are_those_of_a_plain_loop(name, lengths, x64):
  cell, bits = CELLS[name], 2.0
  ends = None if lengths is None else jnp.array(lengths)

  def both(*args):
    def of(run):
      def objective(params, xs, carry):
        outputs, last = run(params, xs, carry)
        weights = jnp.cos(jnp.arange(outputs.size, dtype=outputs.dtype))
        loss = jnp.sum(outputs * weights.reshape(outputs.shape))
        return loss + sum(jnp.sum(jnp.sin(z)) for z in last), (outputs, last)

      return jax.value_and_grad(objective, (0, 1, 2), has_aux=True)(*args)

    # What lies beyond the end of a sequence is not looked at.
    steps = jnp.arange(STEPS)[:, None, None]
    beyond = steps >= (STEPS if ends is None else ends[None, :, None])

    def ours(params, xs, carry):
      return cell.apply(
        params,
        jnp.where(beyond, jnp.nan, xs),
        carry,
        lengths=ends,
        gate=depth.Gate(bits),
        integer="int64",
      )

    return of(ours), of(lambda *args: plain(cell, *args, ends, bits))

  params, xs, carry = problem(cell)
  ((_, values), got), ((_, expected_values), expected) = jax.jit(both)(
    params, xs, carry
  )
  chex.assert_trees_all_close(values, expected_values, atol=1e-10)
  chex.assert_trees_all_close(got, expected, rtol=1e-9, atol=1e-9)
  assert all(jnp.max(jnp.abs(bar)) > 0.01 for bar in jax.tree.leaves(got))


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_memory_of_what_is_read_off(name):
  """Nothing grows with the steps but the stack: 3 bits a unit and step."""
  cell = CELLS[name]
  params = cell.init(jax.random.key(0), SIZE, HIDDEN)

  def bytes_of(steps):
    def objective(params, xs):
      losses, _ = cell.apply(
        params, xs, outputs=lambda hidden: jnp.sum(hidden**2)
      )
      return jnp.sum(losses)

    xs = jax.ShapeDtypeStruct((steps, 200, SIZE), "float32")
    compiled = jax.jit(jax.grad(objective)).lower(params, xs).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  units = 200 * HIDDEN * (2 if cell is revlstm else 1)
  assert bytes_of(500) - bytes_of(100) < 1.01 * 400 * units * 3 / 8 + 400 * 64


@pytest.mark.slow
def test_bfloat16_and_batches():
  params, xs, _ = problem(revgru, "bfloat16")

  @jax.jit
  def gradients(params, xs):
    def objective(params):
      outputs, _ = revgru.apply(params, xs)
      return jnp.mean(outputs.astype(jnp.float32) ** 2)

    return jax.grad(objective)(params)

  one = gradients(params, xs)
  for bar, param in zip(*map(jax.tree.leaves, (one, params)), strict=True):
    assert bar.dtype == param.dtype and bool(jnp.isfinite(bar).all())


def test_errors():
  params, xs, carry = problem(revgru, "float32")
  for message, args, kwargs in (
    ("must be .T, B, 4.", (params, xs[0]), {}),
    ("must have 2 arrays", (params, xs, carry[:1]), {}),
    ("one for each sequence", (params, xs), {"lengths": jnp.ones(3)}),
    ("between 0 and 11", (params, xs), {"lengths": [1, 12, -1]}),
  ):
    with pytest.raises(ValueError, match=message):
      revgru.apply(*args, **kwargs)
  with pytest.raises(ValueError, match="an even number"):
    revlstm.init(jax.random.key(0), 3, 5)
  with pytest.raises(ValueError, match="at least 1"):
    revlstm.init(jax.random.key(0), 0, 4)
