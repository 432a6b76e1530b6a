"""Converted weights: round trips, and the same outputs as those of Flax.

PyTorch's outputs and gradients are in `stack_test`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from revmom.cells import conversion, elman, gru, lstm, stack, ugrnn

torch = pytest.importorskip("torch")

INPUTS, HIDDEN = 4, 5


def close(got, expected, tolerance=1e-12):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance),
    got,
    expected,
  )


def same(got, expected):
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, got, expected)


def randomised(tree, seed=0):
  """Of the same shapes, so that no bias is zero."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), tree)


TO_TORCH = [
  (lstm.cell, torch.nn.LSTM, {}, {}),
  (lstm.cell, torch.nn.LSTM, {"projection_size": 3}, {"proj_size": 3}),
  (lstm.cell, torch.nn.LSTM, {"bias": False}, {"bias": False}),
  (gru.cell, torch.nn.GRU, {}, {}),
  (gru.cell, torch.nn.GRU, {"bias": False}, {"bias": False}),
  (elman.cell, torch.nn.RNN, {}, {}),
]


@pytest.mark.sampled(2)
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("cell, layer, ours, theirs", TO_TORCH)
def test_torch_and_back(cell, layer, ours, theirs):
  params = stack.init(
    cell, jax.random.key(0), INPUTS, HIDDEN, 2, bidirectional=True, **ours
  )
  params = randomised(params)
  weights = conversion.to_torch(params)
  same(conversion.from_torch(cell, weights), params)
  module = layer(INPUTS, HIDDEN, 2, bidirectional=True, **theirs)
  # Strict: every name and shape is what PyTorch has.
  module.load_state_dict({k: torch.from_numpy(w) for k, w in weights.items()})
  xs = np.random.default_rng(1).normal(size=(6, 2, INPUTS)).astype("float32")
  with torch.no_grad():
    expected = module(torch.from_numpy(xs))[0].numpy()
  got, _ = jax.jit(partial(stack.apply, cell))(params, jnp.asarray(xs))
  close(got, expected, 2e-6)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
  "cell, module",
  [
    (lstm.cell, linen.OptimizedLSTMCell),
    (lstm.cell, linen.LSTMCell),
    (gru.cell, linen.GRUCell),
    (elman.cell, linen.SimpleCell),
  ],
)
def test_linen(x64, cell, module):
  module = module(HIDDEN, param_dtype="float64", dtype="float64")
  xs = np.random.default_rng(1).normal(size=(6, 2, INPUTS))
  carry = module.initialize_carry(jax.random.key(0), (2, INPUTS))
  weights = randomised(module.init(jax.random.key(0), carry, xs[0])["params"])

  def theirs(weights):
    run = lambda carry, x: module.apply({"params": weights}, carry, x)
    return jax.lax.scan(run, carry, xs)[1]

  def ours(weights):
    params = conversion.from_flax(cell, weights)
    return cell.apply(params, jnp.asarray(xs))[0]

  def results(weights):
    """Outputs, and gradients of a loss of them."""
    for function in (ours, theirs):
      outputs, pull = jax.vjp(function, weights)
      yield outputs, pull(jnp.cos(outputs))[0]

  close(*jax.jit(lambda weights: tuple(results(weights)))(weights))
  params = conversion.from_flax(cell, weights)
  same(conversion.to_flax(params, "linen"), dict(weights))
  same(conversion.from_flax(cell, conversion.to_flax(params, "linen")), params)


@pytest.mark.parametrize(
  "cell, module, layout",
  [
    (lstm.cell, nnx.OptimizedLSTMCell, "nnx"),
    (lstm.cell, nnx.LSTMCell, "nnx_split"),
    (gru.cell, nnx.GRUCell, "nnx"),
    (elman.cell, nnx.SimpleCell, "nnx"),
  ],
)
def test_nnx(cell, module, layout):
  """Outputs after export; `nnx_test` compares gradients."""
  module = module(INPUTS, HIDDEN, rngs=nnx.Rngs(0))
  params = jax.jit(lambda key: cell.init(key, INPUTS, HIDDEN))(
    jax.random.key(0)
  )
  if cell is gru.cell:
    params = params._replace(candidate_bias=None)
  params = randomised(params)
  weights = conversion.to_flax(params, layout)
  same(conversion.from_flax(cell, weights), params)
  nnx.update(module, weights)
  same(nnx.to_pure_dict(nnx.state(module, nnx.Param)), weights)
  xs = np.random.default_rng(1).normal(size=(6, 2, INPUTS)).astype("float32")
  expected = nnx.RNN(module, time_major=True)(jnp.asarray(xs))
  close(cell.apply(params, jnp.asarray(xs))[0], expected, 2e-6)


def test_absent_biases_are_zeros_in_flax():
  params = jax.jit(lambda key: lstm.init(key, INPUTS, HIDDEN, bias=False))(
    jax.random.key(0)
  )
  back = conversion.from_flax(lstm.cell, conversion.to_flax(params, "linen"))
  same(back, params._replace(bias=jnp.zeros(4 * HIDDEN)))


def test_a_bias_of_the_candidate_alone_is_not_lost():
  params = jax.jit(lambda key: gru.init(key, INPUTS, HIDDEN))(jax.random.key(0))
  params = params._replace(bias=None, candidate_bias=jnp.ones(HIDDEN))
  expected = params._replace(bias=jnp.zeros(3 * HIDDEN))
  weights = conversion.to_torch(((params,),))
  same(conversion.from_torch(gru.cell, weights), ((expected,),))
  weights = conversion.to_flax(params, "linen")
  same(conversion.from_flax(gru.cell, weights), expected)


def exported(cell, to, **options):
  params = cell.init(jax.random.key(0), INPUTS, HIDDEN, **options)
  if to == "torch":
    return conversion.to_torch(((params,),))
  return conversion.to_flax(params, to)


@pytest.mark.parametrize(
  "cell, to, options, message",
  [
    (lstm.cell, "torch", {"peephole": True}, "peephole"),
    (lstm.cell, "linen", {"peephole": True}, "peephole"),
    (lstm.cell, "linen", {"projection_size": 3}, "projection"),
    (lstm.cell, "torch", {"layer_norm": True}, "input_gain.*cell_bias"),
    (gru.cell, "torch", {"learned_carry": True}, "initial_carry.*yourself"),
    (gru.cell, "torch", {"reset": "before"}, "candidate_weights"),
    (gru.cell, "nnx", {}, "candidate_bias"),
    (gru.cell, "nnx_split", {}, "LSTMs only"),
    (gru.cell, "equinox", {}, "choose one of"),
    (ugrnn.cell, "torch", {}, "no cell for UGRNNParams"),
    (ugrnn.cell, "linen", {}, "no cell for UGRNNParams"),
  ],
)
def test_what_cannot_be_exported(cell, to, options, message):
  with pytest.raises(ValueError, match=message):
    exported(cell, to, **options)


def test_directions_that_torch_does_not_have():
  one = jax.jit(lambda key: elman.init(key, HIDDEN, HIDDEN))(jax.random.key(0))
  for layers in [(), ((one,), (one, one)), ((one,) * 3,)]:
    with pytest.raises(ValueError, match="the same for all layers"):
      conversion.to_torch(layers)


@pytest.mark.parametrize(
  "cell, change, message",
  [
    (ugrnn.cell, {}, "no ugrnn cell"),
    (gru.cell, {}, r"weight_hh_l0 has the shape \(20, 5\)"),
    (lstm.cell, {"weight_hh_l0": None}, "no weight_hh_l0"),
    (lstm.cell, {"bias_hh_l0": None}, "no bias_hh_l0"),
    (lstm.cell, {"bias_ih_l0": np.ones(5)}, r"\(5,\), but must"),
    (lstm.cell, {"weight_hr_l0": np.ones((3, 5))}, r"\(5, 5\)"),
    (lstm.cell, {"weight_ih_l2": np.ones((3, 5))}, "no weight_ih_l1"),
    (lstm.cell, {"lstm.weight_ih_l0": np.ones((3, 5))}, "without prefixes"),
    (lstm.cell, {"weight_ih_l0_reverse": np.ones((20, 4))}, "l0_reverse"),
  ],
)
def test_torch_weights_that_do_not_fit(cell, change, message):
  weights = exported(lstm.cell, "torch") | change
  weights = {k: w for k, w in weights.items() if w is not None}
  with pytest.raises(ValueError, match=message):
    conversion.from_torch(cell, weights)


@pytest.mark.parametrize(
  "cell, layout, change, message",
  [
    (ugrnn.cell, "linen", {}, "no ugrnn cell"),
    (gru.cell, "linen", {}, "no hr/kernel"),
    (gru.cell, "nnx", {}, "dense_h/kernel has the shape"),
    (lstm.cell, "linen", {"hi": {"kernel": np.ones((5, 5))}}, "no hi/bias"),
    (
      lstm.cell,
      "linen",
      {"x": {"kernel": np.ones((5, 5))}},
      "x/kernel.*do not",
    ),
    (lstm.cell, "linen", {"ii": {"kernel": np.ones((5, 4))}}, r"\(any, 5\)"),
  ],
)
def test_flax_weights_that_do_not_fit(cell, layout, change, message):
  weights = exported(lstm.cell, layout) | change
  with pytest.raises(ValueError, match=message):
    conversion.from_flax(cell, weights)
