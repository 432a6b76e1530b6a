"""What gradients of layers with gates say where they are no numbers."""

import jax
import jax.numpy as jnp
import pytest

import revmom
from revmom import depth
from revmom.depth import sweep


def gradient(gate, x, gates):
  """Of the last value and of a loss of each layer."""
  half = lambda layer, carry: (layer["gate"], jnp.sin(layer["x"]))
  updates = depth.Updates((half,), (gate,))

  def objective(x):
    layers = {"gate": gates, "x": jnp.ones_like(gates)}
    (out,), losses = depth.reversible_scan(
      updates, (x,), layers, outputs=lambda layer, carry: carry[0] ** 2
    )
    return jnp.sum(out) + jnp.sum(losses)

  return jax.grad(objective)(x)


@pytest.mark.parametrize("part", ["integer", "number", "stack"])
def test_one_fault_in_one_layer_is_located(part, monkeypatch):
  honest = sweep.steps.retrace

  def faulty(layer, roles, after, given, t, *others):
    leaf, gates = honest(layer, roles, after, given, t, *others)
    buffer, integers = leaf.buffers["z0"], leaf.integers["z0"]
    one = (t == 37).astype(jnp.int32)
    if part == "integer":
      integers = integers.at[0].add(one)
    elif part == "number":
      number = buffer.number.at[2].add(one.astype(jnp.uint32))
      buffer = buffer._replace(number=number)
    else:
      buffer = buffer._replace(used=buffer.used - one)
    return leaf.put("z0", integers, buffer), gates

  gates = jnp.full((60, 6), 0.5)
  found = gradient(depth.Gate(3), jnp.ones(6), gates)
  assert bool(jnp.isfinite(found).all())
  monkeypatch.setattr(sweep.steps, "retrace", faulty)
  found = gradient(depth.Gate(3), jnp.ones(6), gates)
  assert bool(jnp.isnan(found).all())
  assert "between layers 32 and 48" in revmom.explain(found)


def test_what_else_went_wrong_is_said():
  gates = jnp.full((60, 64), 0.5)
  small = gradient(depth.Gate(3, budget=0.5), jnp.ones(64), gates)
  assert "than their budget has room" in revmom.explain(small)
  low = gradient(depth.Gate(3), jnp.ones(64), gates.at[20, 5].set(0.1))
  assert "a gate was out of its range" in revmom.explain(low)
