"""Second derivatives of restored layers are those of stored ones."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import revmom
from revmom import depth

WIDTH = 5


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


def dense(name):
  return lambda layer, x: jnp.tanh(x @ layer[name] + layer["b"]) / 2


MEMBERS = {
  "revnet": depth.revnet(dense("f"), dense("g")),
  "learned": depth.momentum(
    dense("f"), lambda layer: jax.nn.sigmoid(layer["rate"])
  ),
  "leapfrog": depth.leapfrog(lambda layer, x: -jnp.sin(x), 0.1),
}


def kept(updates, carry, layers):
  """The same in floats, which autodiff stores."""

  def step(carry, layer):
    carry = list(carry)
    for k, (function, decay) in enumerate(zip(*updates, strict=True)):
      rho = 1 if decay is None else decay
      rho = rho(layer) if callable(rho) else rho
      seen = (*carry[:k], None, *carry[k + 1 :])
      carry[k] = rho * carry[k] + function(layer, seen)
    return tuple(carry), None

  return lax.scan(step, tuple(carry), layers)[0]


def exact(*args):
  """On a grid as fine as there is."""
  return depth.reversible_scan(*args, integer="int64")


def network_of(number, dtype="float64"):
  """Layers, of which one array is of integers, and a carry."""
  layers = {
    "f": normal(0, number, WIDTH, WIDTH) / 3,
    "g": normal(1, number, WIDTH, WIDTH) / 3,
    "b": 0.1 * normal(2, number, WIDTH),
    "rate": np.linspace(0.2, 1.5, number),
  }
  layers = {name: jnp.asarray(a, dtype) for name, a in layers.items()}
  carry = tuple(jnp.asarray(normal(3 + i, 3, WIDTH), dtype) for i in range(2))
  return layers, carry


def gradient_of_a_gradient(scan, updates, places):
  """Of an objective of all first derivatives, by all floats."""

  def objective(carry, floats):
    out = scan(updates, carry, floats | {"place": places})
    return sum(jnp.sum(jnp.sin(z + i)) for i, z in enumerate(out))

  def outer(carry, floats):
    value, grads = jax.value_and_grad(objective, (0, 1))(carry, floats)
    return value**2 + sum(jnp.sum(jnp.cos(x)) for x in jax.tree.leaves(grads))

  return jax.grad(outer, (0, 1))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", MEMBERS)
def test_second_derivatives_are_those_of_a_scan_that_keeps_all(name, x64):
  layers, carry = network_of(5)
  both = jax.jit(
    lambda *args: [
      gradient_of_a_gradient(scan, MEMBERS[name], jnp.arange(5))(*args)
      for scan in (exact, kept)
    ]
  )
  got, expected = both(carry, layers)
  chex.assert_trees_all_close(got, expected, rtol=1e-8, atol=1e-9)
  assert any(float(jnp.max(jnp.abs(bar))) > 0.1 for bar in got[0])


def test_tangents_of_any_size_and_what_is_closed_over(x64):
  """Cotangents of 1e-12 and of 1e9 lose nothing on their grids."""
  layers, carry = network_of(4)

  def of(scan):
    def objective(scale, size):
      updates = depth.revnet(
        lambda layer, x: jnp.tanh(x * scale @ layer["f"]),
        lambda layer, x: jnp.sin(x) * scale,
      )
      return size * jnp.sum(jnp.cos(scan(updates, carry, layers)[0]))

    inner = jax.grad(objective)
    return jax.vmap(
      jax.grad(lambda scale, size: jnp.sum(inner(scale, size))), (None, 0)
    )

  scale, sizes = jnp.linspace(0.5, 1, WIDTH), jnp.array([1e-12, 1e9])
  got, expected = jax.jit(
    lambda: [of(s)(scale, sizes) for s in (exact, kept)]
  )()
  for ours_, theirs in zip(got, expected, strict=True):
    np.testing.assert_allclose(ours_, theirs, rtol=1e-9)


def gated(name, gate):
  """A half whose gates and increments see the other one."""

  def change(layer, carry):
    (other,) = (array for array in carry if array is not None)
    keep = gate.limit(jax.nn.sigmoid(2 * other @ layer["g"] + layer["b"]))
    return keep, (1 - keep) * jnp.tanh(other @ layer[name])

  return change


def kept_gates(updates, carry, layers, outputs):
  """The same with gates rounded likewise, in floats."""

  def step(carry, layer):
    carry = list(carry)
    for k, function in enumerate(updates.functions):
      gate, change = function(layer, (*carry[:k], None, *carry[k + 1 :]))
      rounded = jnp.round(gate * 1024) / 1024
      gate = gate + lax.stop_gradient(rounded - gate)
      carry[k] = gate * carry[k] + change
    return tuple(carry), outputs(layer, tuple(carry))

  return lax.scan(step, tuple(carry), layers)


@pytest.mark.slow
def test_those_of_gates_and_of_outputs(x64):
  """Outputs see the layer, the carry, what they close over; some are whole."""
  layers, carry = network_of(5)
  gate = depth.Gate(3)
  updates = depth.Updates((gated("f", gate), gated("rate", gate)), (gate, gate))
  layers["rate"] = jnp.asarray(normal(7, 5, WIDTH, WIDTH))

  def of(scan):
    def objective(carry, layers, scale):
      read = lambda layer, carry: {
        "loss": jnp.sum(jnp.sin(carry[0] * scale) * layer["b"], 1),
        "whole": jnp.argmax(carry[1], 1),
      }
      out, losses = scan(updates, carry, layers, outputs=read)
      weighted = jnp.cos(losses["loss"]) * jnp.arange(3.0)
      return sum(jnp.sum(jnp.sin(z)) for z in out) + jnp.sum(weighted)

    def outer(*args):
      value, grads = jax.value_and_grad(objective, (0, 1, 2))(*args)
      leaves = jax.tree.leaves(grads)
      return value**2 + sum(jnp.sum(jnp.cos(x)) for x in leaves)

    return jax.grad(outer, (0, 1, 2))

  ours = lambda *args, **kwargs: depth.reversible_scan(
    *args, integer="int64", **kwargs
  )
  both = jax.jit(lambda *args: [of(scan)(*args) for scan in (ours, kept_gates)])
  got, expected = both(carry, layers, jnp.float64(0.7))
  chex.assert_trees_all_close(got, expected, rtol=1e-8, atol=1e-9)
  assert all(jnp.max(jnp.abs(bar)) > 0.1 for bar in jax.tree.leaves(got))


def test_third_derivatives_are_refused():
  layers, (x, _) = network_of(2, "float32")
  of = lambda e: depth.reversible_scan(MEMBERS["revnet"], (e * x, x), layers)[
    0
  ][0, 0]
  with pytest.raises(ValueError, match="can't be differentiated three times"):
    jax.eval_shape(jax.grad(jax.grad(jax.grad(of))), 1.0)


def network(scan):
  """A loss on an input and a target, of the layers of a Momentum ResNet."""
  updates = depth.momentum(
    lambda layer, x: jnp.tanh(x @ layer["w"] + layer["b"]), 0.7
  )

  def loss(layers, batch, decay):
    x, y = batch
    out = scan(updates, (0 * x, x), layers)[1]
    return jnp.mean((out - y) ** 2) + decay * jnp.sum(layers["w"] ** 2)

  return loss


def problem(count, number, dtype):
  own = lambda *shape: jnp.asarray(normal(len(shape), *shape), dtype)
  layers = {"w": own(number, 4, 4) / 2, "b": 0.1 * own(number, 4)}
  return layers, (own(count, 6, 4), own(count, 6, 4, 1)[..., 0])


def test_a_training_run_and_its_layers_reversed_at_once(x64):
  """Hypergradients through both are those of floats that keep everything."""
  layers, batches = problem(8, 6, "float64")
  grid = revmom.Grid(integer="int64")

  def hypergradients(loss, optimizer, decay):
    def objective(optimizer, decay, layers):
      run = revmom.train(loss, optimizer, layers, batches, decay)
      return jnp.sum(jnp.sin(run.params["w"])) + run.losses[-1]

    return jax.grad(objective, (0, 1, 2))(optimizer, decay, layers)

  optimizer = revmom.sgd(0.1, 0.9, grid=grid)
  got, expected = jax.jit(
    lambda *args: [
      hypergradients(network(scan), *args) for scan in (exact, kept)
    ]
  )(optimizer, jnp.asarray(0.01))
  assert jax.tree.all(jax.tree.map(lambda a: jnp.isfinite(a).all(), got))
  chex.assert_trees_all_close(got, expected, rtol=1e-7, atol=1e-9)
  assert abs(float(got[0].learning_rate)) > 0.01


@pytest.mark.slow
def test_a_training_run_of_restored_layers_comes_back():
  layers, batches = problem(20, 30, "float32")
  loss, optimizer = network(depth.reversible_scan), revmom.sgd(0.1, 0.9)

  @jax.jit
  def there_and_back():
    run = revmom.train(loss, optimizer, layers, batches, 0.0)
    return run, revmom.rewind(loss, optimizer, run.state, batches, 0.0)

  run, back = there_and_back()
  assert float(run.losses[-1]) < 0.9 * float(run.losses[0])
  assert bool(back.receipt.ok)
  chex.assert_trees_all_equal(back.params, run.initial_params)
