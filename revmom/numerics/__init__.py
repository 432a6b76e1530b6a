"""Floating-point arithmetic that cells, models and analyses share.

Products and sums of short floats accumulate in float32; layer normalisation
and its adjoint; a sigmoid that vectorises; and broadcasting that is meant.
"""

from revmom.numerics.elementwise import sigmoid
from revmom.numerics.normalisation import (
  Normalised,
  normalise,
  normalise_adjoint,
)
from revmom.numerics.precision import accumulator, cast
from revmom.numerics.products import outer_products, product, total
from revmom.numerics.rank_promotion import broadcasting

__all__ = [
  "Normalised",
  "accumulator",
  "broadcasting",
  "cast",
  "normalise",
  "normalise_adjoint",
  "outer_products",
  "product",
  "sigmoid",
  "total",
]
