"""Flax modules, Linen and NNX, against functions of the same network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from revmom.analysis import gradient_flow, module_spectra

WIDTH = 4


class LinenBlock(linen.Module):
  @linen.compact
  def __call__(self, x):
    return x + linen.tanh(linen.Dense(WIDTH)(x))


class LinenNetwork(linen.Module):
  depth: int = 2

  @linen.compact
  def __call__(self, x):
    for _ in range(self.depth):
      x = LinenBlock()(x)
    return linen.Dense(3)(x)


class Block(nnx.Module):
  def __init__(self, rngs):
    self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

  def __call__(self, x):
    return x + jnp.tanh(self.linear(x))


class Network(nnx.Module):
  def __init__(self, rngs, depth=2):
    self.blocks = nnx.List([Block(rngs) for _ in range(depth)])
    self.head = nnx.Linear(WIDTH, 3, rngs=rngs)

  def __call__(self, x):
    for block in self.blocks:
      x = block(x)
    return self.head(x)


def same_network():
  """NNX, Linen's variables, and functions with parameters."""
  network = Network(nnx.Rngs(0))
  linears = [*(block.linear for block in network.blocks), network.head]
  for linear in linears:
    linear.bias[...] = jnp.full_like(linear.bias[...], 0.1)
  *blocks, head = (
    {"kernel": linear.kernel[...], "bias": linear.bias[...]}
    for linear in linears
  )
  variables = {
    "params": {
      **{f"LinenBlock_{i}": {"Dense_0": own} for i, own in enumerate(blocks)},
      "Dense_0": head,
    }
  }
  affine = lambda p, x: x @ p["kernel"] + p["bias"]
  block = lambda p, x: x + jnp.tanh(affine(p, x))
  return network, variables, ([block, block, affine], [*blocks, head])


def loss(y):
  return jnp.sum(y.astype(jnp.float32) ** 3)


@pytest.mark.slow
def test_modules_have_the_figures_of_functions():
  network, variables, functions = same_network()
  x = jax.random.normal(jax.random.key(1), (3, WIDTH))
  of = functools.partial(gradient_flow, loss=loss, spectra=True)
  wanted = of(*functions, x)
  names = {
    "nnx": ["input", "blocks.0 Block", "blocks.1 Block", "head Linear"],
    "linen": [
      "input",
      "LinenBlock_0 LinenBlock",
      "LinenBlock_1 LinenBlock",
      "Dense_0 Dense",
    ],
  }
  flows = {
    "nnx": of(network, None, x),
    "linen": of(LinenNetwork(), variables, x),
  }
  for kind, flow in flows.items():
    rows = np.array([flow.names.index(name) for name in names[kind]])
    for got, expected in zip(
      jax.tree.leaves(flow[2:6]), jax.tree.leaves(wanted[2:6]), strict=True
    ):
      np.testing.assert_allclose(got[rows], expected, rtol=1e-5, atol=1e-6)
    rows = np.array([flow.spectra.names.index(n) for n in names[kind][1:]])
    for got, expected in (
      (flow.spectra.layers, wanted.spectra.layers),
      (flow.spectra.products, wanted.spectra.products),
    ):
      if len(got.spread.value) > 1:
        got = jax.tree.map(lambda leaf, rows=rows: leaf[rows], got)
      else:
        expected = jax.tree.map(lambda leaf: leaf[-1:], expected)
      np.testing.assert_allclose(
        np.exp(got.log_values), np.exp(expected.log_values), atol=1e-5
      )
    assert flow.problems == [] and flow.spectra.log_largest_bound is None
    # The module itself is the last row, with all parameters.
    np.testing.assert_allclose(
      flow.parameters.norm[-1],
      np.linalg.norm(wanted.parameters.norm),
      rtol=1e-5,
    )


@pytest.mark.slow
def test_jit_and_bfloat16():
  network, variables, _ = same_network()
  x = jax.random.normal(jax.random.key(1), (3, WIDTH))
  state = nnx.state(network, nnx.Param)
  cases = [
    (lambda p, x: gradient_flow(network, p, x, loss=loss), state),
    (lambda p, x: gradient_flow(LinenNetwork(), p, x, loss=loss), variables),
  ]
  for measure, params in cases:
    plain, jitted = measure(params, x), jax.jit(measure)(params, x)
    assert plain.names == jitted.names
    for got, wanted in zip(
      jax.tree.leaves(jitted), jax.tree.leaves(plain), strict=True
    ):
      np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    short = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, x))
    rounded = jax.jit(measure)(*short)
    for got, wanted in zip(rounded[2:6], plain[2:6], strict=True):
      np.testing.assert_allclose(got.norm, wanted.norm, rtol=0.03, atol=1e-6)


class Training(nnx.Module):
  """What changes its own state, and calls layers within transformations."""

  def __init__(self, rngs):
    self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    make = nnx.split_rngs(splits=3)(nnx.vmap(Block, in_axes=0, out_axes=0))
    self.stack = make(rngs)

  def __call__(self, x):
    x = self.dropout(self.norm(x))
    body = nnx.scan(
      lambda block, x: block(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry
    )
    return body(self.stack, x)


@pytest.mark.slow
def test_an_nnx_module_is_left_as_it_is():
  module = Training(nnx.Rngs(0))
  before = jax.tree.map(jnp.copy, nnx.state(module, nnx.Not(nnx.RngState)))
  classes = [type(child) for _, child in nnx.iter_modules(module)]
  x = jax.random.normal(jax.random.key(1), (8, WIDTH))
  flow = gradient_flow(module, None, x, spectra=True)
  assert [type(child) for _, child in nnx.iter_modules(module)] == classes
  after = nnx.state(module, nnx.Not(nnx.RngState))
  jax.tree.map(np.testing.assert_array_equal, before, after)
  jax.tree.map(
    np.testing.assert_array_equal, module(x), module.__call__(x)
  ) if (False) else None
  # All three layers of the scan are in one row.
  row = flow.names.index("stack Block")
  assert flow.activations.elements[row] == 3 * x.size
  # They have three Jacobians, so none is shown.
  assert flow.spectra.names == ("norm BatchNorm", "dropout Dropout", "Training")


class LinenTraining(linen.Module):
  @linen.compact
  def __call__(self, x, train):
    x = linen.BatchNorm(use_running_average=not train)(x)
    x = linen.Dropout(0.5, deterministic=not train)(x)
    shared = linen.Dense(WIDTH)
    x = shared(shared(x))
    x = linen.remat(LinenBlock)()(x)
    loop = linen.scan(
      LinenLoop, variable_axes={"params": 0}, split_rngs={"params": True}
    )
    return loop()(x, jnp.zeros((3, 1)))[0]


class LinenLoop(linen.Module):
  @linen.compact
  def __call__(self, x, _):
    return LinenBlock()(x), None


@pytest.mark.slow
def test_linen_calls_within_transformations():
  x = jax.random.normal(jax.random.key(1), (8, WIDTH))
  module = LinenTraining()
  keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
  variables = module.init(keys, x, True)
  flow = gradient_flow(
    module, variables, x, train=True, rngs={"dropout": jax.random.key(2)}
  )
  assert flow.problems == []
  elements = dict(zip(flow.names, flow.activations.elements, strict=True))
  assert elements["Dense_0 Dense"] == 2 * x.size  # called twice
  assert elements["CheckpointLinenBlock_0.Dense_0 Dense"] == x.size
  loop = next(n for n in elements if "Loop" in n and "LinenBlock_0" in n)
  assert elements[loop] == 3 * x.size
  spectra = module_spectra(
    module, variables, x, train=True, rngs={"dropout": jax.random.key(2)}
  )
  assert "Dense_0 Dense" in spectra.names and loop not in spectra.names


@pytest.mark.slow
def test_dead_submodules_are_named():
  network, _, _ = same_network()
  network.head.kernel[...] = jnp.zeros((WIDTH, 3))
  flow = gradient_flow(network, None, jnp.ones((1, WIDTH)))
  text = "\n".join(flow.problems)
  assert "blocks.1 Block: the gradient is zero" in text
  assert (
    "blocks.0.linear Linear: the gradient of its parameters is zero" in text
  )
  assert "head" not in text
  network.blocks[1].linear.bias[...] = jnp.full(WIDTH, jnp.nan)
  assert any(
    p.startswith("blocks.1.linear Linear: 4 of 20 parameters are not finite")
    for p in gradient_flow(network, None, jnp.ones((1, WIDTH))).problems
  )


class Attention(nnx.Module):
  def __init__(self, rngs):
    self.mix = nnx.MultiHeadAttention(
      num_heads=2, in_features=WIDTH, decode=False, rngs=rngs
    )

  def __call__(self, queries, keys):
    return self.mix(queries, keys)


@pytest.mark.slow
def test_several_arguments():
  xs = tuple(
    jax.random.normal(jax.random.key(i), (1, 3, WIDTH)) for i in (0, 1)
  )
  flow = gradient_flow(Attention(nnx.Rngs(0)), None, xs, spectra=True)
  assert flow.problems == []
  assert flow.activations.elements[0] == 24
  # 12 results by 24 arguments.
  assert flow.spectra.products.log_values.shape == (1, 24)


def test_what_does_not_fit_is_an_error():
  network, variables, _ = same_network()
  x = jnp.ones((1, WIDTH))
  with pytest.raises(ValueError, match="nnx.state"):
    gradient_flow(network, variables, x)
  with pytest.raises(ValueError, match="variables that its init returns"):
    gradient_flow(LinenNetwork(), None, x)
