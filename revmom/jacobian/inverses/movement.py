"""Primitives that only move elements, as maps of indices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.jacobian.inverses.knowledge import (
  Known,
  blank,
  blanks,
  concrete,
  mask_of,
)
from revmom.jacobian.program.equations import Equation, Variable

Move = Callable[[list[np.ndarray], dict[str, Any]], Any]


def _broadcast(operands: list[np.ndarray], params: dict[str, Any]) -> Any:
  shape, dimensions = params["shape"], params["broadcast_dimensions"]
  expanded = [1] * len(shape)
  for size, dimension in zip(operands[0].shape, dimensions, strict=True):
    expanded[dimension] = size
  return np.broadcast_to(operands[0].reshape(expanded), shape)


def _slice(operands: list[np.ndarray], params: dict[str, Any]) -> Any:
  strides = params["strides"] or (1,) * operands[0].ndim
  limits = zip(
    params["start_indices"], params["limit_indices"], strides, strict=True
  )
  return operands[0][tuple(slice(*limit) for limit in limits)]


def _split(operands: list[np.ndarray], params: dict[str, Any]) -> Any:
  return np.split(operands[0], np.cumsum(params["sizes"])[:-1], params["axis"])


# What each does to an array of indices.
MOVES: dict[str, Move] = {
  "broadcast_in_dim": _broadcast,
  "concatenate": lambda a, p: np.concatenate(a, p["dimension"]),
  "copy": lambda a, p: a[0],
  "copy_p": lambda a, p: a[0],
  "optimization_barrier": lambda a, p: a,
  "reshape": lambda a, p: a[0].reshape(p["new_sizes"]),
  "rev": lambda a, p: np.flip(a[0], p["dimensions"]),
  "slice": _slice,
  "split": _split,
  "squeeze": lambda a, p: a[0].squeeze(p["dimensions"]),
  "stack": lambda a, p: np.stack(a, p["axis"]),
  "transpose": lambda a, p: a[0].transpose(p["permutation"]),
}
# Others move as their constant operands say; how many operands are moved.
DIRECTED = {
  "dynamic_slice": 1,
  "dynamic_update_slice": 2,
  "gather": 1,
  "pad": 2,
}


def moves(equation: Equation) -> bool:
  """Whether the equation only moves elements."""
  return equation.name in MOVES or equation.name in {
    *DIRECTED,
    "scatter",
    "select_n",
  }


def sources(
  equation: Equation, operands: Sequence[Known]
) -> list[np.ndarray] | None:
  """Where each element of the outputs comes from, or None if it is unknown.

  Elements of the operands are numbered throughout, in order; -1 stands for a
  value that comes from none of them.
  """
  moved = _moved(equation)
  numbered: list[Any] = []
  start = 0
  for k, operand in enumerate(equation.operands):
    if k in moved:
      size = int(np.prod(np.shape(operand)))
      numbers = np.arange(start, start + size, dtype=np.int32)
      numbered.append(numbers.reshape(np.shape(operand)))
      start += size
    else:
      value = concrete(operands[k])
      if value is None:
        return None
      numbered.append(value)
  if equation.name in MOVES:
    result = MOVES[equation.name](numbered, equation.params)
    return result if isinstance(result, list) else [result]
  return _apply(equation, numbered)


def _moved(equation: Equation) -> Sequence[int]:
  """The places of the operands whose elements are moved."""
  count = len(equation.operands)
  if equation.name == "select_n":
    return range(1, count)
  if equation.name == "scatter":
    return (0, 2)
  return range(DIRECTED.get(equation.name, count))


def _apply(equation: Equation, numbered: list[Any]) -> list[np.ndarray]:
  with jax.ensure_compile_time_eval():
    results = equation.apply([jnp.asarray(a) for a in numbered])
  # Out-of-bounds elements are filled with the least of the int32.
  return [np.asarray(a).astype(np.int64) for a in results]


def restored(equation: Equation, outputs: Sequence[Known]) -> Known | None:
  """The operand of what keeps or reverses all elements, without indices."""
  output, operand = outputs[0], equation.operands[0]
  if equation.name not in MOVES or len(equation.operands) > 1:
    return None
  if not output.complete or output.value is None:
    return None
  if equation.name == "transpose":
    order = np.argsort(equation.params["permutation"]).tolist()
    return Known(jnp.transpose(output.value, order))
  if equation.name == "rev":
    return Known(lax.rev(output.value, equation.params["dimensions"]))
  # What is left keeps the order of the elements.
  if len(outputs) == 1 and operand.size == np.size(output.value):
    return Known(jnp.reshape(output.value, operand.shape))
  return None


def forward(
  equation: Equation, maps: Sequence[np.ndarray], operands: Sequence[Known]
) -> dict[Variable, Known]:
  """What the operands tell about the outputs, element by element."""
  if not any(operand.value is not None for operand in operands):
    return {}
  moved = _moved(equation)
  flags = [
    mask_of(operands[k], np.shape(equation.operands[k])).reshape(-1)
    for k in moved
  ]
  values = [
    blanks(v) if known.value is None else known.value
    for v, known in zip(equation.operands, operands, strict=True)
  ]
  # The last flag is for the index -1: a value of its own.
  known = np.concatenate([*flags, [True]])
  masks = [known[np.maximum(indices, -1)] for indices in maps]
  if not any(mask.any() for mask in masks):
    return {}
  results = equation.apply(values)
  return {
    variable: Known(value, None if mask.all() else mask)
    for variable, value, mask in zip(
      equation.outputs, results, masks, strict=True
    )
  }


def backward(
  operands: Sequence[Known],
  equation: Equation,
  maps: Sequence[np.ndarray],
  outputs: Sequence[Known],
) -> dict[Variable, Known]:
  """What the outputs tell about the operands."""
  learnt: dict[Variable, Known] = {}
  start = 0
  for k in _moved(equation):
    operand = equation.operands[k]
    size = int(np.prod(np.shape(operand)))
    if isinstance(operand, Variable) and not operands[k].complete:
      found = _gather(operand, start, maps, outputs)
      if found is not None:
        learnt[operand] = found
    start += size
  return learnt


def _gather(
  operand: Variable,
  start: int,
  maps: Sequence[np.ndarray],
  outputs: Sequence[Known],
) -> Known | None:
  """An operand's elements, from wherever they went to."""
  flat = jnp.full(operand.size, blank(operand.dtype))
  mask = np.zeros(operand.size, bool)
  for indices, output in zip(maps, outputs, strict=True):
    if output.value is None:
      continue
    numbers = indices.reshape(-1) - start
    places = np.flatnonzero(
      (numbers >= 0)
      & (numbers < operand.size)
      & mask_of(output, indices.shape).reshape(-1)
    )
    numbers = numbers[places]
    values = jnp.reshape(output.value, -1)
    if 0 < len(places) == operand.size == len(np.unique(numbers)):
      return Known(_permuted(values, places, numbers).reshape(operand.shape))
    flat = flat.at[numbers].set(values[places])
    mask[numbers] = True
  if not mask.any():
    return None
  return Known(
    flat.reshape(operand.shape),
    None if mask.all() else mask.reshape(operand.shape),
  )


def _permuted(
  values: jax.Array, places: np.ndarray, numbers: np.ndarray
) -> jax.Array:
  """values[places] in the order of their numbers."""
  order = places[np.argsort(numbers)]
  if np.array_equal(order, np.arange(order[0], order[0] + len(order))):
    return values[order[0] : order[0] + len(order)]
  return values[order]
