"""Layers restored bit for bit, with the gradients of a scan that keeps all."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import revmom
from revmom import depth
from revmom.depth import sweep

WIDTH, BATCH = 5, 3


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def dense(name):
  return lambda layer, x: jnp.tanh(x @ layer[name] + layer["b"][None]) * 0.5


def layers(number):
  return {
    "f": normal(0, number, WIDTH, WIDTH) / 3,
    "g": normal(1, number, WIDTH, WIDTH) / 3,
    "b": 0.1 * normal(2, number, WIDTH),
    "rate": jnp.linspace(0.2, 1.5, number),
    "place": jnp.arange(number),
  }


MEMBERS = {
  "revnet": depth.revnet(dense("f"), dense("g")),
  "momentum .9": depth.momentum(dense("f"), 0.9),
  "momentum .1": depth.momentum(dense("f"), 0.1),
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


def start(dtype):
  carry = 0.3 * normal(3, BATCH, WIDTH), normal(4, BATCH, WIDTH)
  return tuple(a.astype(dtype) for a in carry)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", MEMBERS)
def test_values_and_gradients_are_those_of_a_scan_that_keeps_all(name, x64):
  updates, count = MEMBERS[name], 9
  parameters = layers(count)

  def both(carry, parameters):
    def of(scan):
      def objective(carry, floats):
        own = {**parameters, **floats}
        out = scan(updates, carry, own)
        return sum(jnp.sum(jnp.sin(z + i)) for i, z in enumerate(out)), out

      floats = {k: v for k, v in parameters.items() if k != "place"}
      return jax.value_and_grad(objective, (0, 1), has_aux=True)(carry, floats)

    ours = lambda *args: depth.reversible_scan(*args, integer="int64")
    return of(ours), of(kept)

  ((_, out), got), ((_, expected_out), expected) = jax.jit(both)(
    start("float64"), parameters
  )
  chex.assert_trees_all_close(out, expected_out, atol=1e-7)
  chex.assert_trees_all_close(got, expected, rtol=1e-6, atol=1e-7)
  assert any(float(jnp.max(jnp.abs(bar))) > 0.1 for bar in got[0])


GAMMAS = (0.1, 0.5, 0.9, 0.99)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("gamma", [None, *GAMMAS])
def test_a_thousand_layers_come_back(gamma, dtype, monkeypatch):
  """All integers of all layers, compared one by one instead of by a hash.

  A gradient is finite only if every one was restored.
  """
  integers = lambda leaf, t: jnp.stack([*leaf.integers.values()])
  monkeypatch.setattr(sweep.receipt, "hash_of", integers)
  updates = depth.revnet(dense("f"), dense("g"))
  if gamma is not None:
    updates = depth.momentum(dense("f"), gamma)
  cast = lambda a: a.astype(dtype) if a.dtype != jnp.int32 else a
  parameters = jax.tree.map(cast, layers(1000))

  @jax.jit
  def gradients(carry, parameters):
    def objective(carry):
      # Coarse, for two streams that grow.
      out = depth.reversible_scan(updates, carry, parameters, fraction_bits=18)
      return sum(jnp.mean(z.astype(jnp.float32) ** 2) for z in out)

    return jax.grad(objective)(carry)

  carry = start(dtype)
  assert bool((carry[0] < 0).any())
  for bar in gradients(carry, parameters):
    assert bar.dtype == dtype and bool(jnp.isfinite(bar).all())


def test_seeds_closed_over_arrays_and_jit():
  scale = jnp.linspace(0.5, 1.0, WIDTH)

  def objective(scale, carry):
    updates = depth.revnet(
      lambda layer, x: jnp.tanh(x * scale[None] @ layer["f"]),
      lambda layer, x: jnp.sin(x) * scale[None],
    )
    return jnp.sum(depth.reversible_scan(updates, carry, layers32)[0])

  layers32 = jax.tree.map(
    lambda a: a.astype("float32") if a.dtype != jnp.int32 else a, layers(6)
  )
  carry = start("float32")
  one = jax.grad(objective)(scale, carry)
  many = jax.jit(jax.vmap(jax.grad(objective), (0, None)))(
    jnp.stack([scale, 2 * scale]), carry
  )
  np.testing.assert_allclose(many[0], one, rtol=1e-4)
  assert float(jnp.max(jnp.abs(one))) > 0.01


def test_memory_does_not_depend_on_depth():
  """Beyond the buffer's words, where a factor forgets: .15 bits a layer."""

  def bytes_of(scan, name, number):
    parameters = jax.tree.map(
      lambda a: a.astype("float32") if a.dtype != jnp.int32 else a,
      layers(number),
    )
    carry = tuple(jnp.ones((400, WIDTH)) for _ in range(2))
    objective = lambda c: jnp.sum(scan(MEMBERS[name], c, parameters)[1])
    compiled = jax.jit(jax.grad(objective)).lower(carry).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  for name, bits in (("revnet", 0), ("momentum .9", 0.152)):
    ours, stored = (
      bytes_of(scan, name, 240) - bytes_of(scan, name, 40)
      for scan in (depth.reversible_scan, kept)
    )
    elements = 200 * 400 * WIDTH
    assert stored >= 4 * elements
    # Parameters' cotangents, and the words.
    assert ours < 1.1 * elements * bits / 8 + 2 * 4 * 200 * WIDTH * 12


def test_a_reversal_that_fails_gives_no_number_and_says_where(monkeypatch):
  """One integer of one layer that is off by one is enough."""
  parameters = jax.tree.map(
    lambda a: a.astype("float32") if a.dtype != jnp.int32 else a, layers(60)
  )
  carry = start("float32")
  objective = lambda x: jnp.sum(
    depth.reversible_scan(MEMBERS["revnet"], (x, carry[1]), parameters)[0]
  )
  honest = sweep.steps.retrace

  def faulty(layer, roles, after, given, t, *others):
    leaf, gates = honest(layer, roles, after, given, t, *others)
    wrong = leaf.integers["z1"].at[0, 0].add((t == 37).astype(jnp.int32))
    return leaf.put("z1", wrong, None), gates

  assert bool(jnp.isfinite(jax.grad(objective)(carry[0])).all())
  monkeypatch.setattr(sweep.steps, "retrace", faulty)
  found = jax.grad(objective)(carry[0])
  assert bool(jnp.isnan(found).all())
  assert "between layers 32 and 48" in revmom.explain({"carry": 2 * found})
  too_large = jax.grad(lambda x: objective(1e6 * x))(carry[0])
  assert "left its grid" in revmom.explain(too_large)


def test_factors_in_twice_the_precision(x64):
  """A number is not rounded to float32 on its way."""
  parameters, carry = layers(50), start("float64")
  of = lambda gamma, carry: depth.reversible_scan(
    depth.momentum(dense("f"), gamma), carry, parameters, integer="int64"
  )
  loss = lambda out: jnp.sum(jnp.sin(out[1]))
  number = jax.jit(jax.grad(lambda c: loss(of(0.9, c))))(carry)
  kept_ = lambda c: loss(kept(depth.momentum(dense("f"), 0.9), c, parameters))
  chex.assert_trees_all_close(
    number, jax.jit(jax.grad(kept_))(carry), rtol=1e-8
  )
  traced = jax.jit(jax.grad(lambda gamma: loss(of(gamma, carry))))(0.9)
  exact = lambda gamma: loss(
    kept(depth.momentum(dense("f"), lambda layer: gamma), carry, parameters)
  )
  np.testing.assert_allclose(traced, jax.jit(jax.grad(exact))(0.9), rtol=1e-8)


def test_floors_and_no_layers():
  parameters = jax.tree.map(lambda a: jnp.asarray(a, "float32"), layers(4))
  carry = start("float32")
  of = jax.jit(
    lambda gamma, floors: depth.reversible_scan(
      depth.momentum(dense("f"), gamma), carry, parameters, floors=floors
    )[1],
    static_argnums=1,
  )
  at_its_floor = of(0.9, (0.9, 1.0))
  np.testing.assert_array_equal(at_its_floor, of(0.9, (0.5, 1.0)))
  assert bool(jnp.isnan(of(0.3, None)).all())
  assert bool(jnp.isfinite(of(0.3, (0.25, 1.0))).all())
  none = jax.tree.map(lambda a: a[:0], parameters)
  out = depth.reversible_scan(MEMBERS["revnet"], carry, none)
  chex.assert_trees_all_equal(out, carry)


def test_other_choices():
  updates, carry = MEMBERS["revnet"], start("float32")
  parameters = jax.tree.map(lambda a: jnp.asarray(a, "float32"), layers(3))
  scan = lambda **kwargs: depth.reversible_scan(
    updates, carry, parameters, **kwargs
  )
  large = tuple(1000 * a for a in carry)
  coarse = depth.reversible_scan(updates, large, parameters, fraction_bits=0)
  assert bool(jnp.isfinite(coarse[0]).all())
  for kwargs, message in (
    ({"fraction_bits": 20.5}, "whole number"),
    ({"fraction_bits": -1}, "from 0 to 30"),
    ({"integer": "int16"}, "choose int32 or int64"),
    ({"integer": "int64"}, "needs 64-bit types"),
    ({"floors": (0.5,)}, "each of the 2 arrays"),
    ({"floors": (0.5, 2.0)}, r"in \(0, 1\]"),
  ):
    with pytest.raises(ValueError, match=message):
      scan(**kwargs)
  for build in (depth.momentum, depth.leapfrog):
    with pytest.raises(ValueError, match="a function of the layer"):
      build(dense("f"), jnp.array([0.5, 0.7, 0.9]))


def test_errors():
  updates, carry = MEMBERS["revnet"], start("float32")
  cases = [
    ("2 updates; give one array for each", (carry[0],), layers(3)),
    ("one shape and one floating", (carry[0], carry[1][0]), layers(3)),
    ("same leading axis", carry, {"f": jnp.ones(3), "g": jnp.ones(4)}),
    ("shape", carry, {**layers(3), "b": jnp.ones((3, 1, 2, WIDTH))}),
  ]
  for message, arrays, parameters in cases:
    parameters = jax.tree.map(lambda a: jnp.asarray(a, "float32"), parameters)
    with pytest.raises(ValueError, match=message):
      depth.reversible_scan(updates, arrays, parameters)
  with pytest.raises(ValueError, match="not by one function of the carry"):
    depth.reversible_scan(lambda c, x: (c, None), carry, layers(3))
  zero = depth.momentum(dense("f"), 0.0)
  floats = jax.tree.map(lambda a: jnp.asarray(a, "float32"), layers(3))
  with pytest.raises(ValueError, match="forgets the value"):
    depth.reversible_scan(zero, carry, floats)
