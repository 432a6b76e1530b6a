"""What goes into a layer of cells on a grid, checked."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from revmom.cells.grids import grid, pipeline


def prepare(
  params: Any, xs: jax.Array, direction: Any, sizes: Any, schedule: Any
) -> tuple[grid.Plan, jax.Array | None]:
  """Checks the arguments of a layer; returns its plan and its sizes."""
  layers = _layers(params, schedule)
  _check(layers[0], xs)
  plan = grid.plan(layers[0].recurrent_weights.shape[0], direction, schedule)
  grid.valid_cells(sizes, xs.shape[:-2], xs.shape[-2])
  return plan, None if sizes is None else jnp.asarray(sizes)


def _layers(params: Any, schedule: Any) -> Sequence[Any]:
  """One layer, or those of a pipeline."""
  several = not hasattr(params, "recurrent_weights")
  if several != (schedule == grid.PIPELINED):
    given = f"a {type(params).__name__}" if several else "of one layer"
    raise ValueError(
      f"params are {given} with schedule={schedule!r}; give a sequence of "
      f'layers with schedule="{grid.PIPELINED}", and a single layer with one '
      f"of {grid.SCHEDULES} or None."
    )
  if not several:
    return (params,)
  pipeline.check(params)
  return params


def _check(params: Any, xs: jax.Array) -> None:
  ndim = params.recurrent_weights.shape[0]
  input_size = params.input_weights.shape[0]
  if xs.ndim != ndim + 2:
    axes = ", ".join(f"S_{axis + 1}" for axis in range(ndim))
    raise ValueError(
      f"xs has the shape {xs.shape}, but these parameters are of {ndim}-"
      f"dimensional grids: give [{axes}, batch, {input_size}]."
    )
  if xs.shape[-1] != input_size:
    raise ValueError(
      f"xs has {xs.shape[-1]} features, but these parameters need "
      f"{input_size}: call init with input_size={xs.shape[-1]}."
    )
  if not jnp.issubdtype(xs.dtype, jnp.floating):
    raise ValueError(f"xs is {xs.dtype}; give floats.")
