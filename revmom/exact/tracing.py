"""What is known while a program is traced."""

from typing import Any

import jax
import numpy as np


def concrete(value: Any) -> np.ndarray | None:
  """The numbers of a value that is known here and now.

  None while it is traced, and where other processes hold parts of it.

  >>> concrete(0.5), jax.jit(concrete)(0.5)
  (array(0.5), None)
  """
  try:
    here = getattr(value, "is_fully_addressable", True)
    return np.asarray(value) if here or value.is_fully_replicated else None
  except (
    jax.errors.TracerArrayConversionError,
    jax.errors.ConcretizationTypeError,
  ):
    return None
