"""Whether a function keeps types, and is the same under jit and vmap."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from revmom.jacobian.conformance.comparisons import Check, compare, first_line
from revmom.jacobian.conformance.flat import rows


def evaluations(
  name: str,
  function: Callable[[Any], Any],
  points: list[Any],
  tolerance: float,
) -> Check:
  """Evaluates at the points one by one, jitted, and mapped."""
  label = f"{name} under jit and vmap"
  compiled = jax.jit(function)
  ways: dict[str, Callable[[], list[Any]]] = {
    "eager": lambda: [function(point) for point in points],
    "jit": lambda: [compiled(point) for point in points],
    "vmap": lambda: _unstack(jax.vmap(function)(_stack(points)), len(points)),
  }
  results = {}
  for way, evaluate in ways.items():
    try:
      results[way] = evaluate()
    except Exception as error:
      return Check(label, "failed", f"{way} raised {first_line(error)}")
  expected = jnp.result_type(jax.tree.leaves(points[0])[0])
  for leaf in jax.tree.leaves(results["eager"]):
    if jnp.result_type(leaf) != expected:
      detail = f"got {jnp.result_type(leaf)}, expected {expected}"
      return Check(label, "failed", f"{detail} as for the arguments.")
  found = {way: rows(values) for way, values in results.items()}
  checks = [
    compare(label, found[way], found["eager"], 0, tolerance)
    for way in ("jit", "vmap")
  ]
  return max(checks, key=lambda check: check.status == "failed")


def same_structure(name: str, got: Any, expected: Any) -> Check:
  """Whether two pytrees have the same structure and shapes."""
  shapes = [jax.tree.map(np.shape, tree) for tree in (got, expected)]
  if shapes[0] == shapes[1]:
    return Check(name, "passed", f"{shapes[0]}.")
  return Check(name, "failed", f"got {shapes[0]}, expected {shapes[1]}.")


def same_size(name: str, got: Any, expected: Any) -> Check:
  """Whether two pytrees have as many numbers."""
  sizes = [sum(np.size(a) for a in jax.tree.leaves(t)) for t in (got, expected)]
  if sizes[0] == sizes[1]:
    return Check(name, "passed", f"{sizes[0]} numbers.")
  return Check(name, "failed", f"got {sizes[0]}, expected {sizes[1]} numbers.")


def _stack(trees: list[Any]) -> Any:
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _unstack(tree: Any, count: int) -> list[Any]:
  def at(i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], tree)

  return [at(i) for i in range(count)]
