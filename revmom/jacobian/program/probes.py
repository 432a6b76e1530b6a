"""Numbers at which an inverse is tried."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Domains that functions have: the line, (0, 1), and what is above 1.
FAMILIES: tuple[Callable[[np.random.Generator, Any], np.ndarray], ...] = (
  lambda rng, shape: rng.normal(size=shape),
  lambda rng, shape: rng.uniform(0.1, 0.9, shape),
  lambda rng, shape: rng.uniform(1.1, 3.0, shape),
)


def probes(
  inputs: Sequence[Any], constants: Sequence[Any], like: Sequence[Any]
) -> Iterator[tuple[list[Any], list[Any]]]:
  """Inputs of a program and its constants, none of them traced.

  First the examples, if they have values, then random numbers of one family
  after the other.
  """
  rng = np.random.default_rng(0)
  examples = jax.tree.leaves(tuple(like))
  if examples and not any(map(_is_abstract, examples)):
    values = [
      jnp.asarray(a, v.dtype) for a, v in zip(examples, inputs, strict=True)
    ]
    yield values, [_concrete(c, FAMILIES[0], rng) for c in constants]
  for family in FAMILIES:
    yield (
      [_draw(family, rng, v) for v in inputs],
      [_concrete(c, family, rng) for c in constants],
    )


def _is_abstract(value: Any) -> bool:
  return isinstance(value, jax.ShapeDtypeStruct | jax.core.Tracer)


def _concrete(constant: Any, family: Any, rng: np.random.Generator) -> Any:
  """The constant, or random numbers in place of a traced one."""
  return _draw(family, rng, constant) if _is_abstract(constant) else constant


def _draw(family: Any, rng: np.random.Generator, like: Any) -> jax.Array:
  if jnp.issubdtype(like.dtype, jnp.floating):
    return jnp.asarray(family(rng, like.shape), like.dtype)
  return jnp.ones(like.shape, like.dtype)
