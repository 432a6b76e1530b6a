"""Logarithms of derivatives, right where the derivative itself underflows.

1 - tanh(x)^2 is 0 in float32 from x = 9 on, its logarithm is not.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# log f'(x) of increasing functions.
LOG_SLOPES: dict[str, Callable[[jax.Array], jax.Array]] = {
  "erf": lambda x: jnp.log(2 / jnp.sqrt(jnp.pi)).astype(x.dtype) - x * x,
  "exp": lambda x: x,
  "expm1": lambda x: x,
  "logistic": lambda x: -jax.nn.softplus(x) - jax.nn.softplus(-x),
  "tanh": lambda x: (
    2 * (jnp.log(2.0).astype(x.dtype) - x - jax.nn.softplus(-2 * x))
  ),
}
