"""Several directions over a grid, each with weights of its own, and stacks.

A cell sees what lies between it and the corner at which its sweep starts.
Sweeps from all 2^n corners (Graves, Fernandez & Schmidhuber 2007, section 2.1)
let every position see the whole grid.  The functions take the `init` and
`apply` of `mdrnn` or `mdlstm`; options go in with `functools.partial`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from revmom.cells.grids import grid

COMBINATIONS = ("concatenate", "sum")


def init_directions(
  init: Callable[..., Any],
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  *,
  ndim: int = 2,
  directions: Sequence[Sequence[int]] | None = None,
) -> tuple[Any, ...]:
  """Draws parameters for each direction.

  Args:
    init: of a cell.
    key: of `jax.random`.
    input_size: D.
    hidden_size: H, of each direction.
    ndim: n.
    directions: those to use; None is all 2^n of `grid.all_directions`.

  Returns:
    Parameters of the cell, one for each direction.
  """
  count = len(_directions(ndim, directions))
  return tuple(
    init(key, input_size, hidden_size, ndim=ndim)
    for key in jax.random.split(key, count)
  )


def apply_directions(
  apply: Callable[..., jax.Array],
  params: Sequence[Any],
  xs: jax.Array,
  *,
  directions: Sequence[Sequence[int]] | None = None,
  combine: str = "concatenate",
  sizes: Any = None,
  schedule: str | None = None,
) -> jax.Array:
  """Sweeps over a grid in several directions.

  Args:
    apply: of a cell.
    params: from `init_directions`.
    xs: [S_1, ..., S_n, B, D].
    directions: as for `init_directions`.
    combine: "concatenate" or "sum".
    sizes: int32 [B, n], as for the cell.
    schedule: as for the cell.

  Returns:
    [S_1, ..., S_n, B, H], with as many times H features as there are
    directions if they are concatenated.

  Raises:
    ValueError: an unknown combination, or parameters of another number of
      directions; and what the cell raises.

  >>> from revmom.cells import mdlstm
  >>> params = init_directions(mdlstm.init, jax.random.key(0), 3, 5)
  >>> apply_directions(mdlstm.apply, params, jnp.ones((8, 6, 1, 3))).shape
  (8, 6, 1, 20)
  """
  if combine not in COMBINATIONS:
    raise ValueError(f"combine={combine!r}; choose one of {COMBINATIONS}.")
  directions = _directions(xs.ndim - 2, directions)
  if len(params) != len(directions):
    raise ValueError(
      f"{len(params)} parameters for {len(directions)} directions; call "
      "init_directions with the same directions."
    )
  outputs = [
    apply(p, xs, direction=direction, sizes=sizes, schedule=schedule)
    for p, direction in zip(params, directions, strict=True)
  ]
  if combine == "sum":
    return sum(outputs[1:], outputs[0])
  return jnp.concatenate(outputs, -1)


def _directions(ndim: int, directions: Any) -> tuple[Any, ...]:
  if directions is None:
    return grid.all_directions(ndim)
  if not len(directions):
    raise ValueError("directions is empty; give at least one, or None for all.")
  return tuple(directions)


def init_stack(
  init: Callable[..., Any],
  key: jax.Array,
  input_size: int,
  hidden_sizes: Sequence[int],
  *,
  ndim: int = 2,
  directions: Sequence[Sequence[int]] | None = None,
  combine: str = "concatenate",
) -> tuple[tuple[Any, ...], ...]:
  """Draws parameters for layers of several directions.

  Args:
    init: of a cell.
    key: of `jax.random`.
    input_size: D, of the first layer.
    hidden_sizes: H of each layer.
    ndim: n.
    directions: of every layer, as for `init_directions`.
    combine: "concatenate" or "sum", which decides the inputs of the next layer.

  Returns:
    What `init_directions` gives, for each layer.
  """
  layers = []
  count = len(_directions(ndim, directions)) if combine != "sum" else 1
  keys = jax.random.split(key, len(hidden_sizes))
  for key, hidden_size in zip(keys, hidden_sizes, strict=True):
    layer = init_directions(
      init, key, input_size, hidden_size, ndim=ndim, directions=directions
    )
    layers.append(layer)
    input_size = count * hidden_size
  return tuple(layers)


def apply_stack(
  apply: Callable[..., jax.Array],
  layers: Sequence[Sequence[Any]],
  xs: jax.Array,
  *,
  directions: Sequence[Sequence[int]] | None = None,
  combine: str = "concatenate",
  sizes: Any = None,
  schedule: str | None = None,
) -> jax.Array:
  """The outputs of the last layer of a stack.

  Args:
    apply: of a cell.
    layers: from `init_stack`.
    xs: [S_1, ..., S_n, B, D].
    directions, combine, sizes: of `apply_directions`, the same for every layer.
    schedule: as for the cell.  "pipelined", for layers of one direction and
      one size, lets all of them work at once, so that a stack of m layers
      takes H + W + m - 2 rounds in two dimensions and not m (H + W - 1): see
      `pipeline`.

  Returns:
    As `apply_directions`.

  Raises:
    ValueError: layers of several directions or sizes in a pipeline; and what
      `apply_directions` raises.

  >>> from revmom.cells import mdrnn
  >>> layers = init_stack(mdrnn.init, jax.random.key(0), 3, [4, 5, 6])
  >>> apply_stack(mdrnn.apply, layers, jnp.ones((8, 6, 1, 3))).shape
  (8, 6, 1, 24)
  """
  if schedule == grid.PIPELINED:
    direction = _one_direction(layers, xs.ndim - 2, directions)
    return apply(
      [layer[0] for layer in layers],
      xs,
      direction=direction,
      sizes=sizes,
      schedule=schedule,
    )
  for layer in layers:
    xs = apply_directions(
      apply,
      layer,
      xs,
      directions=directions,
      combine=combine,
      sizes=sizes,
      schedule=schedule,
    )
  return xs


def _one_direction(
  layers: Sequence[Sequence[Any]], ndim: int, directions: Any
) -> Any:
  """That of all layers of a pipeline."""
  directions = _directions(ndim, directions)
  counts = {len(directions), *map(len, layers)}
  if counts != {1}:
    raise ValueError(
      f"schedule={grid.PIPELINED!r} with {len(directions)} directions for "
      f"layers of {[len(layer) for layer in layers]}: a layer that begins at "
      "several corners waits for all of the layer below, and cannot work at "
      "the same time. Give one direction, or another schedule."
    )
  return directions[0]
