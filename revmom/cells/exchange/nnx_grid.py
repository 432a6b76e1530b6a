"""Layers of Flax NNX over grids; `nnx` has them beside those of sequences."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from revmom.cells.exchange.nnx_weights import Weighted, check_options
from revmom.cells.grids import mdlstm, mdrnn, multidirectional


class OverGrid(Weighted):
  """A layer over a grid; `MDRNN` and `MDLSTM` say of which cell."""

  functions: Any  # the module with `init` and `apply`

  def __init__(
    self,
    in_features: int,
    hidden_features: int,
    *,
    rngs: nnx.Rngs,
    ndim: int = 2,
    directions: Any = None,
    combine: str = "concatenate",
    schedule: str | None = None,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    **options: Any,
  ):
    """Draws the weights.

    Args:
      in_features, hidden_features: D, and H of each direction.
      rngs: of the weights ("params").
      ndim: n, the dimensions of the grid.
      directions: of +1 and -1 for each axis; None is all 2^n.
      combine: of the directions' outputs, "concatenate" or "sum".
      schedule: as for `apply` of the cell.
      dtype, param_dtype: as for `LSTM`.
      **options: of `init` of the cell.

    Raises:
      ValueError: if a size or an option does not exist.
    """
    check_options(type(self).__name__, self.functions.init, options)
    self.in_features = in_features
    self.hidden_features = hidden_features
    self.directions = None if directions is None else _static(directions)
    self.combine = combine
    self.schedule = schedule
    self.dtype = dtype
    params = multidirectional.init_directions(
      partial(self.functions.init, dtype=param_dtype, **options),
      rngs.params(),
      in_features,
      hidden_features,
      ndim=ndim,
      directions=self.directions,
    )
    self._hold(params)

  def __call__(self, inputs: jax.Array, *, sizes: Any = None) -> jax.Array:
    """Sweeps over a grid.

    Args:
      inputs: [B, S_1, ..., S_n, D].
      sizes: int32 [B, n], as for `apply` of the cell.

    Returns:
      [B, S_1, ..., S_n, H], or with more features if they are concatenated.

    Raises:
      ValueError: if shapes or sizes do not fit, or an option is unknown.
    """
    outputs = multidirectional.apply_directions(
      self.functions.apply,
      self.weights(),
      jnp.moveaxis(self._cast(inputs), 0, -2),
      directions=self.directions,
      combine=self.combine,
      sizes=sizes,
      schedule=self.schedule,
    )
    return jnp.moveaxis(outputs, -2, 0)


class MDRNN(OverGrid):
  """A plain recurrent network over a grid.

  >>> MDRNN(3, 5, rngs=nnx.Rngs(0))(jnp.ones((2, 8, 6, 3))).shape
  (2, 8, 6, 20)
  """

  functions = mdrnn


class MDLSTM(OverGrid):
  """Long short-term memory over a grid.

  >>> layer = MDLSTM(3, 5, rngs=nnx.Rngs(0), directions=[(1, 1)])
  >>> layer(jnp.ones((2, 8, 6, 3))).shape
  (2, 8, 6, 5)
  """

  functions = mdlstm


def _static(directions: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
  """Tuples, as what is static must be comparable."""
  return tuple(tuple(direction) for direction in directions)
