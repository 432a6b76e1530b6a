"""What is known while a program is traced."""

from typing import Any

import jax
import numpy as np


def concrete(value: Any) -> np.ndarray | None:
  """The numbers of a value that is known now, None while it is traced.

  >>> concrete(0.5), jax.jit(concrete)(0.5)
  (array(0.5), None)
  """
  try:
    return np.asarray(value)
  except (
    jax.errors.TracerArrayConversionError,
    jax.errors.ConcretizationTypeError,
  ):
    return None
