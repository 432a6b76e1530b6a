"""Floating-point results that do not depend on what they are fused with.

Compilers turn a product and a sum that meet in one kernel into a fused
multiply-add, which rounds once instead of twice.  Whether they meet depends on
everything else that is computed nearby, so that the same equation may give
other bits in a forward and in a reverse pass.  Behind a fence it can't.
"""

import jax
import jax.numpy as jnp
from jax import lax


def fence(values: jax.Array, step: jax.Array) -> jax.Array:
  """The same values, but no compiler can tell that they are.

  Their bits are combined with the sign of the step, which is never negative;
  that is cheaper than a branch and, unlike an optimization barrier, stays in
  the program.

  Args:
    values: float32 or float64, any shape.
    step: int32 [], at least 0 and not a constant of the program.

  >>> fence(jnp.array([1.5, -2.0]), jnp.array(7))
  Array([ 1.5, -2. ], dtype=float32)
  """
  bits = jnp.int64 if values.dtype == jnp.float64 else jnp.int32
  zero = (step >> 31).astype(bits)
  raw = lax.bitcast_convert_type(values, bits)
  return lax.bitcast_convert_type(raw ^ zero, values.dtype)
