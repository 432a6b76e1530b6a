"""A module whose layers `.ci/run weekly` looks at: a deep sigmoid network."""

import flax.linen as nn
import jax


class Deep(nn.Module):
  """Gradients vanish in it."""

  @nn.compact
  def __call__(self, x):
    for _ in range(12):
      x = nn.sigmoid(nn.Dense(16)(x))
    return nn.Dense(3)(x)


def factory(key):
  """The module, its variables and an input."""
  x = jax.random.normal(key, (4, 10))
  module = Deep()
  return module, module.init(key, x), x
