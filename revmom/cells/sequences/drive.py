"""What the inputs contribute to the gates, x W + b, and its adjoint."""

from typing import Any

import jax
import jax.numpy as jnp

from revmom.cells.sequences.affine import project, project_adjoint
from revmom.cells.sequences.equations import Equations, Parts


def drive(params: Any, inputs: jax.Array) -> jax.Array:
  """x W + b [..., G], of one step or of many."""
  return project(inputs, params.input_weights, params.input_gain, params.bias)


def parts(equations: Equations, drive: jax.Array) -> Parts:
  """A drive in the parts that a step takes."""
  return tuple(jnp.split(drive, equations.parts, -1))


def driven(equations: Equations, params: Any, inputs: jax.Array) -> Parts:
  """The drive of inputs, in parts."""
  return parts(equations, drive(params, inputs))


def biased(params: Any, drive: Parts) -> Parts:
  """The parts [1, G] of x W + b from those of x W [G] of one sequence."""
  if params.bias is None:
    return tuple(part[None] for part in drive)
  biases = jnp.split(params.bias, len(drive))
  return tuple(
    part[None] + bias.astype(part.dtype)
    for part, bias in zip(drive, biases, strict=True)
  )


def drive_adjoint(
  params: Any, inputs: jax.Array, bars: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
  """Adjoints of the inputs, and of the fields of params that a drive has."""
  input_bars, weights_bar, gain_bar, bias_bar = project_adjoint(
    inputs, params.input_weights, params.input_gain, params.bias, bars
  )
  return input_bars, {
    "input_weights": weights_bar,
    "input_gain": gain_bar,
    "bias": bias_bar,
  }
