"""How costs grow with the sizes of a network."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Scaling(NamedTuple):
  """A cost at several sizes, and its power law.

  Attributes:
    sizes: that were measured.
    costs: there.
    exponent: of the size.
    residual: the largest relative difference of a cost from the power law.
  """

  sizes: tuple[int, ...]
  costs: tuple[float, ...]
  exponent: float
  residual: float


def scaling(measure: Callable[[int], float], sizes: Sequence[int]) -> Scaling:
  """Fits cost = c size^p by least squares of logarithms.

  Args:
    measure: gives the cost at a size, such as `cost(...).connections`.
    sizes: at least two; large ones, where lower powers don't matter.

  Raises:
    ValueError: there are fewer than two sizes, or something isn't positive.

  >>> quadratic = scaling(lambda size: 3 * size**2, [16, 32, 64])
  >>> round(quadratic.exponent, 6)
  2.0
  """
  sizes = tuple(sizes)
  costs = tuple(float(measure(size)) for size in sizes)
  if len(set(sizes)) < 2 or min(sizes) <= 0 or min(costs) <= 0:
    raise ValueError(
      f"Costs {costs} at sizes {sizes} have no power law; give two different "
      "sizes or more, all positive, at which the cost is positive, too."
    )
  logs = np.log(sizes), np.log(costs)
  exponent, constant = np.polyfit(*logs, 1)
  apart = np.expm1(logs[1] - exponent * logs[0] - constant)
  return Scaling(sizes, costs, float(exponent), float(np.abs(apart).max()))
