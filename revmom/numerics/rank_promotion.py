"""Arrays of different ranks, combined on purpose under any setting of JAX."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

_P = ParamSpec("_P")
_R = TypeVar("_R")


def broadcasting(function: Callable[_P, _R]) -> Callable[_P, _R]:
  """The function, in which arrays of different ranks may be combined.

  Users may set `jax_numpy_rank_promotion` to "raise" or "warn", which finds
  their own mistakes; inside this function the promotion is intended.
  """

  @functools.wraps(function)
  def allowed(*args: _P.args, **kwargs: _P.kwargs) -> _R:
    with jax.numpy_rank_promotion("allow"):
      return function(*args, **kwargs)

  return allowed
