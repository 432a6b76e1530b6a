"""Gates computed from data: restored bit for bit, and their gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from revmom import depth
from revmom.depth import sweep
from revmom.exact import gate_buffer

WIDTH, BATCH = 5, 3
GATE = depth.Gate(3)


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def gated(gate=GATE, sharpness=2.0):
  """Two arrays whose gates and increments see the other one."""

  def half(name):
    def change(layer, carry):
      (other,) = (array for array in carry if array is not None)
      keep = jax.nn.sigmoid(
        sharpness * (other @ layer["gate " + name]) + layer["b"][None]
      )
      keep = gate.limit(keep)
      return keep, (1 - keep) * jnp.tanh(other @ layer[name])

    return change

  return depth.Updates((half("f"), half("g")), (gate, gate))


def layers(number, dtype="float64"):
  arrays = {
    "f": normal(0, number, WIDTH, WIDTH),
    "g": normal(1, number, WIDTH, WIDTH),
    "gate f": normal(2, number, WIDTH, WIDTH),
    "gate g": normal(3, number, WIDTH, WIDTH),
    "b": normal(4, number, WIDTH),
  }
  return jax.tree.map(lambda a: a.astype(dtype), arrays)


def start(dtype="float64"):
  carry = normal(5, BATCH, WIDTH), normal(6, BATCH, WIDTH)
  return tuple(a.astype(dtype) for a in carry)


def through(values, rounded):
  """`rounded`, differentiated as `values`."""
  return values + lax.stop_gradient(rounded - values)


def kept(updates, carry, layers, outputs=None):
  """The same with gates rounded likewise, which autodiff stores."""

  def step(carry, layer):
    carry = list(carry)
    for k, function in enumerate(updates.functions):
      seen = (*carry[:k], None, *carry[k + 1 :])
      gate, increment = function(layer, seen)
      gate = through(gate, jnp.round(gate * 1024) / 1024)
      carry[k] = gate * carry[k] + increment
    carry = tuple(carry)
    return carry, None if outputs is None else outputs(layer, carry)

  carry, read = lax.scan(step, tuple(carry), layers)
  return carry if outputs is None else (carry, read)


def outputs_of(scale):
  """Outputs that see the layer, the carry and what they close over."""
  return lambda layer, carry: {
    "loss": jnp.sum(jnp.sin(carry[0] * scale) * layer["b"], 1),
    "number": jnp.argmax(carry[1], 1),
  }


@pytest.mark.parametrize(
  "sharpness", [pytest.param(2.0, marks=pytest.mark.slow), 60.0]
)
def test_gradients_are_those_of_a_scan_that_keeps_all(sharpness, x64):
  """Of carry, layers, what is closed over, by the end and by outputs."""
  updates = gated(sharpness=sharpness)

  def both(carry, layers, scale):
    def of(scan):
      def objective(carry, layers, scale):
        out, read = scan(updates, carry, layers, outputs=outputs_of(scale))
        loss = sum(jnp.sum(jnp.sin(z + i)) for i, z in enumerate(out))
        weights = jnp.arange(len(read["loss"]), dtype=scale.dtype)
        return loss + jnp.sum(weights[:, None] * read["loss"]), (out, read)

      return jax.value_and_grad(objective, (0, 1, 2), has_aux=True)(
        carry, layers, scale
      )

    ours = lambda *args, **kwargs: depth.reversible_scan(
      *args, integer="int64", **kwargs
    )
    return of(ours), of(kept)

  ((_, values), got), ((_, expected_values), expected) = jax.jit(both)(
    start(), layers(7), jnp.float64(0.7)
  )
  chex.assert_trees_all_close(values, expected_values, atol=1e-10)
  chex.assert_trees_all_close(got, expected, rtol=1e-9, atol=1e-9)
  assert all(jnp.max(jnp.abs(bar)) > 0.1 for bar in jax.tree.leaves(got))


@pytest.mark.parametrize(
  "kind, dtype",
  [
    ("random", "float32"),
    ("random", "bfloat16"),
    ("saturated", "float32"),
    ("constant", "float32"),
  ],
)
def test_a_thousand_layers_come_back(kind, dtype):
  """A gradient is finite only if every integer was restored."""
  if kind == "constant":
    gates = jnp.array([0.1, 0.5, 0.9, 0.99, 1.0])
    wave = lambda layer, carry: (
      jnp.broadcast_to(gates, carry[1].shape),
      (1 - gates) * jnp.sin(3 * carry[1] + layer["b"][None]),
    )
    other = lambda layer, carry: -jnp.cos(5 * carry[0]) * 0.1
    updates = depth.Updates((wave, other), (depth.Gate(8), 0.9))
  else:
    updates = gated(sharpness=2.0 if kind == "random" else 500.0)

  @jax.jit
  def both(carry, layers):
    objective = lambda carry: sum(
      jnp.mean(z.astype(jnp.float32) ** 2)
      for z in depth.reversible_scan(updates, carry, layers, fraction_bits=20)
    )
    return jax.value_and_grad(objective)(carry)

  loss, bars = both(start(dtype), layers(1000, dtype))
  assert bool(jnp.isfinite(loss))
  for bar in bars:
    assert bar.dtype == dtype and bool(jnp.isfinite(bar).all())


def test_planted_faults_give_no_number(monkeypatch):
  carry, parameters = start("float32"), layers(6, "float32")
  honest, planted = sweep.steps.retrace, [None]

  def faulty(*args):
    leaf, gates = honest(*args)
    buffer, integers = leaf.buffers["z1"], leaf.integers["z1"]
    if planted[0] == "integer":
      integers = integers.at[0, 0].add(1)
    elif planted[0] == "number":
      buffer = buffer._replace(number=buffer.number.at[2, 1].add(1))
    elif planted[0] == "place":
      buffer = buffer._replace(used=buffer.used + 1)
    return leaf.put("z1", integers, buffer), gates

  monkeypatch.setattr(sweep.steps, "retrace", faulty)

  def gradient(x, fault):
    planted[0] = fault
    objective = lambda x: jnp.sum(
      depth.reversible_scan(gated(), (x, carry[1]), parameters)[0]
    )
    return jax.grad(objective)(x)

  kinds = None, "integer", "number", "place"
  found = jax.jit(lambda x: [gradient(x, kind) for kind in kinds])(carry[0])
  assert bool(jnp.isfinite(found[0]).all())
  for bars in found[1:]:
    assert bool(jnp.isnan(bars).all())


def test_what_is_no_gate_becomes_nan():
  layer = {"gate": jnp.array([[0.5, 1.0, 1.1, 0.1, jnp.nan, 0.125]])}
  updates = depth.Updates(
    (lambda layer, carry: (layer["gate"], jnp.zeros(6)),), (GATE,)
  )
  (out,) = depth.reversible_scan(updates, (jnp.ones(6),), layer)
  np.testing.assert_allclose(out, [0.5, 1, *[np.nan] * 3, 0.125], atol=1e-6)


def test_a_budget_that_is_too_small_says_so():
  half = lambda layer, carry: (jnp.full((64,), 0.5), layer["x"])
  parameters = {"x": jnp.ones((100, 64))}

  @jax.jit
  def of(budgets, x):
    def objective(x, budget):
      updates = depth.Updates((half,), (depth.Gate(3, budget),))
      (out,) = depth.reversible_scan(updates, (x,), parameters)
      return jnp.sum(out), depth.bits_kept(updates, (x,), parameters)[0]

    return [
      jax.value_and_grad(objective, has_aux=True)(x, budget)
      for budget in (None, 1.0, 0.5)
    ]

  results = of(None, jnp.zeros(64))
  for (value, kept_), bars in results[:2]:
    assert float(value) == pytest.approx(128, abs=1e-3)
    np.testing.assert_allclose(bars, 2.0**-100, rtol=1e-6)
    assert float(kept_) == pytest.approx(6400, rel=2e-3)
  (value, kept_), bars = results[2]
  assert np.isnan(value) and np.isnan(bars).all() and kept_ > 3200


def test_batches_and_bits():
  updates, parameters = gated(), layers(50, "float32")
  carries = tuple(jnp.stack([a, 2 * a, -a]) for a in start("float32"))

  def objective(carry):
    out = depth.reversible_scan(updates, carry, parameters)
    return sum(jnp.sum(z**2) for z in out)

  one = jax.jit(jax.grad(objective))
  many = jax.jit(jax.vmap(jax.grad(objective)))(carries)
  for k in range(3):
    alone = one(tuple(a[k] for a in carries))
    for got, expected in zip(many, alone, strict=True):
      np.testing.assert_allclose(got[k], expected, rtol=2e-4, atol=1e-6)

  def forgotten(carry):
    def step(carry, layer):
      gates = []
      for k, function in enumerate(updates.functions):
        seen = (*carry[:k], None, *carry[k + 1 :])
        gate, increment = function(layer, seen)
        gates.append(gate)
        own = gate * carry[k] + increment
        carry = (*carry[:k], own, *carry[k + 1 :])
      return carry, -jnp.sum(jnp.log2(jnp.stack(gates)))

    return jnp.sum(lax.scan(step, carry, parameters)[1])

  @jax.jit
  def both(carry):
    kept_ = depth.bits_kept(updates, carry, parameters)
    return kept_[0] + kept_[1], forgotten(carry)

  kept_, expected = both(start("float32"))
  assert float(kept_) == pytest.approx(float(expected), rel=5e-3)


def test_memory_is_that_of_the_stack():
  def bytes_of(scan, number):
    parameters = layers(number, "float32")
    carry = tuple(jnp.ones((400, WIDTH)) for _ in range(2))
    objective = lambda c: jnp.sum(scan(gated(), c, parameters)[1])
    compiled = jax.jit(jax.grad(objective)).lower(carry).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  ours, stored = (
    bytes_of(scan, 240) - bytes_of(scan, 40)
    for scan in (depth.reversible_scan, kept)
  )
  elements = 200 * 400 * WIDTH
  parameters = 4 * 200 * (4 * WIDTH + 1) * WIDTH
  assert stored > 16 * elements
  assert ours < 1.02 * 2 * elements * 3 / 8 + 4 * parameters


def test_errors():
  carry, parameters = start("float32"), layers(3, "float32")
  one = depth.Updates((lambda layer, carry: carry[1],) * 2, (GATE, None))
  with pytest.raises(ValueError, match="must give two arrays"):
    depth.reversible_scan(one, carry, parameters)
  for gate, message in (
    (depth.Gate(0), "more than 0 and up to 8 bits"),
    (depth.Gate(9), "more than 0 and up to 8 bits"),
    (depth.Gate(3, 4), "up to bits=3"),
  ):
    with pytest.raises(ValueError, match=message):
      depth.reversible_scan(gated(gate), carry, parameters)
  many = jax.ShapeDtypeStruct((10**6, 100), "float32")
  deep = {"x": jax.ShapeDtypeStruct((1000,), "float32")}
  half = lambda layer, carry: (0.5 + 0 * carry[1], carry[1])
  updates = depth.Updates((half, lambda layer, carry: carry[0]), (GATE, None))
  with pytest.raises(ValueError, match=r"a stack holds 2\^31"):
    jax.eval_shape(
      lambda c, deep: depth.reversible_scan(updates, c, deep),
      (many, many),
      deep,
    )


def test_the_limit_is_that_of_a_rounded_gate():
  for bits in (0.3, 1.0, 2.5, 3.0, 8.0):
    gate = depth.Gate(bits)
    ends = gate.limit(jnp.array([0.0, 1.0]))
    rounded = gate_buffer.to_gates(ends, gate_buffer.least_gate(bits))
    assert rounded.tolist() == [gate_buffer.least_gate(bits), 1024]
