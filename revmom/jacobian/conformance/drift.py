"""How far functions in float32 are from the same in float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.jacobian.conformance.comparisons import (
  Check,
  compare,
  neighbourhood,
)
from revmom.jacobian.conformance.flat import (
  FlatBijection,
  Functions,
  Local,
  cast,
  flat_bijection,
  rows,
)


class Single(NamedTuple):
  """What the functions give in float32, under the caller's settings."""

  x: np.ndarray  # [N, D]
  y: np.ndarray  # [N, D]
  back: np.ndarray  # [N, D]: f_inverse(y)
  log_det: np.ndarray  # [N]


def in_single(functions: Functions, points: list[Any]) -> Single:
  """Evaluates at the points, cast to float32."""
  singles = [cast(point, jnp.float32) for point in points]
  flat = flat_bijection(*functions, singles[0])

  def evaluate(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    y = flat.forward(x)
    return y, flat.inverse(y), flat.log_det(x)[0]

  x = rows(singles)
  results = jax.jit(jax.vmap(evaluate))(x)
  return Single(x, *map(np.asarray, results))


def drift(
  flat: FlatBijection,
  evaluate: Callable[[Any, Any], Local],
  single: Single,
  count: int,
  tolerance: float,
) -> list[Check]:
  """float32 against float64 at the same points."""
  x = single.x.astype(np.float64)
  near = neighbourhood(flat, evaluate, x, single.x.dtype)
  at, spread = jax.tree.map(lambda a: a[:count], (near.at, near.spread))
  compared = {
    "f": (single.y, at.image, spread.image),
    "f_inverse": (single.back, x, spread.back),
    "log_det": (
      single.log_det,
      at.claimed,
      spread.dense + spread.dense_inverse,
    ),
  }
  return [
    compare(
      f"{name} in float32",
      got[:count],
      expected[:count],
      slack,
      tolerance,
    )
    for name, (got, expected, slack) in compared.items()
  ]
