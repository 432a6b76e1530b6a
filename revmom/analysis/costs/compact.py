"""Arrays that are kept small where they don't vary, and moves of elements.

What is known of the elements of an array is an array of its own: when each is
ready, or its value.  Mostly it is the same for all features and all examples.
So an axis of any size may be held as one of size 1, which stands for equal
entries; NumPy's broadcasting then computes with them as they are.  Behind the
axes of the program's array there may be further ones, which moves leave alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from revmom.jacobian.program.equations import Equation

Shape = tuple[int, ...]


def expand(array: np.ndarray, shape: Shape) -> np.ndarray:
  """The array with all axes of the program's array in full."""
  return np.broadcast_to(array, (*shape, *array.shape[len(shape) :]))


def compact(array: np.ndarray, ndim: int) -> np.ndarray:
  """Holds the first axes along which all entries are equal as size 1.

  >>> compact(np.array([[1, 1, 1], [2, 2, 2]]), 2)
  array([[1],
         [2]])
  """
  for axis in range(ndim):
    if array.shape[axis] > 1:
      first = along(array, axis, slice(0, 1))
      if (array == first).all():
        array = first
  return array


def along(array: np.ndarray, axis: int, index: Any) -> np.ndarray:
  """The array, indexed along one axis."""
  return array[(slice(None),) * axis + (index,)]


def _axis(array: np.ndarray, axis: int, size: int) -> np.ndarray:
  """The array with one axis in full."""
  shape = list(array.shape)
  shape[axis] = size
  return np.broadcast_to(array, shape)


def broadcast(arrays: Sequence[np.ndarray], but: int) -> list[np.ndarray]:
  """Broadcasts arrays of equal rank against each other, but for one axis."""
  shape = np.broadcast_shapes(
    *[(*a.shape[:but], *a.shape[but + 1 :]) for a in arrays]
  )
  return [
    np.broadcast_to(a, (*shape[:but], a.shape[but], *shape[but:]))
    for a in arrays
  ]


# Moves: (arrays of the operands, the equation) -> arrays of the outputs.


def _reshape(arrays: Sequence[np.ndarray], equation: Equation) -> list:
  array = arrays[0]
  old, new = np.shape(equation.operands[0]), equation.outputs[0].shape
  behind = array.shape[len(old) :]
  before, after = [], []
  for own, others in _groups(old, new):
    varies = any(array.shape[axis] != 1 for axis in own)
    before += [old[axis] if varies else 1 for axis in own]
    after += [new[axis] if varies else 1 for axis in others]
  full = np.broadcast_to(array, (*before, *behind))
  return [full.reshape((*after, *behind))]


def _groups(old: Shape, new: Shape) -> list[tuple[range, range]]:
  """The least groups of axes that hold the same elements in both shapes."""
  if 0 in old:
    return [(range(len(old)), range(len(new)))]
  groups, i, j = [], 0, 0
  while i < len(old) or j < len(new):
    first, second = i, j
    if i < len(old):
      i += 1
    if j < len(new):
      j += 1
    while (a := math.prod(old[first:i])) != (b := math.prod(new[second:j])):
      if a < b:
        i += 1
      else:
        j += 1
    groups.append((range(first, i), range(second, j)))
  return groups


def _broadcast(arrays: Sequence[np.ndarray], equation: Equation) -> list:
  (array,), params = arrays[:1], equation.params
  shape = [1] * len(params["shape"])
  for axis, place in enumerate(params["broadcast_dimensions"]):
    shape[place] = array.shape[axis]
  behind = array.shape[len(params["broadcast_dimensions"]) :]
  return [array.reshape((*shape, *behind))]


def _transpose(arrays: Sequence[np.ndarray], equation: Equation) -> list:
  order = tuple(equation.params["permutation"])
  rest = tuple(range(len(order), arrays[0].ndim))
  return [arrays[0].transpose(order + rest)]


def _slice(arrays: Sequence[np.ndarray], equation: Equation) -> list:
  (array,), params = arrays, equation.params
  starts, limits = params["start_indices"], params["limit_indices"]
  strides = params["strides"] or (1,) * len(starts)
  for axis, bounds in enumerate(zip(starts, limits, strides, strict=True)):
    if array.shape[axis] != 1:
      array = along(array, axis, slice(*bounds))
    elif bounds[0] >= bounds[1]:
      array = along(array, axis, slice(0, 0))
  return [array]


def _rev(arrays: Sequence[np.ndarray], equation: Equation) -> list:
  return [np.flip(arrays[0], equation.params["dimensions"])]


def _concatenate(arrays: Sequence[np.ndarray], equation: Equation) -> list:
  axis = equation.params["dimension"]
  full = [
    _axis(array, axis, np.shape(operand)[axis])
    for array, operand in zip(arrays, equation.operands, strict=True)
  ]
  joined = np.concatenate(broadcast(full, but=axis), axis)
  return [compact(joined, len(equation.outputs[0].shape))]


def _split(arrays: Sequence[np.ndarray], equation: Equation) -> list:
  axis, array = equation.params["axis"], arrays[0]
  if array.shape[axis] == 1:
    return [array] * len(equation.outputs)
  ends = np.cumsum(equation.params["sizes"])
  return np.split(array, ends[:-1], axis)


def _pad(arrays: Sequence[np.ndarray], equation: Equation) -> list:
  array, value = arrays
  shape = np.shape(equation.operands[0])
  for axis, (low, high, gap) in enumerate(equation.params["padding_config"]):
    size = shape[axis]
    if (low, high) == (0, 0) and (gap == 0 or size < 2):
      continue
    array = _axis(array, axis, size)
    length = equation.outputs[0].shape[axis]
    places = low + np.arange(size) * (gap + 1)
    inside = (places >= 0) & (places < length)
    blank = list(array.shape)
    blank[axis] = length
    blank[len(shape) :] = np.broadcast_shapes(
      array.shape[len(shape) :], value.shape
    )
    padded = np.array(np.broadcast_to(value, blank))
    padded[(slice(None),) * axis + (places[inside],)] = along(
      array, axis, inside
    )
    array = padded
  return [compact(array, len(shape))]


MOVES: dict[str, Callable[[Sequence[np.ndarray], Equation], list]] = {
  "broadcast_in_dim": _broadcast,
  "concatenate": _concatenate,
  "expand_dims": _reshape,
  "pad": _pad,
  "reshape": _reshape,
  "rev": _rev,
  "slice": _slice,
  "split": _split,
  "squeeze": _reshape,
  "transpose": _transpose,
}


# Slices whose place is the value of an operand.


def take_slice(
  array: np.ndarray, shape: Shape, starts: Sequence[int], sizes: Shape
) -> np.ndarray:
  """What `lax.dynamic_slice` takes out."""
  for axis, start in enumerate(_clamped(starts, shape, sizes)):
    if array.shape[axis] != 1:
      array = along(array, axis, slice(start, start + sizes[axis]))
  return array


def put_slice(
  array: np.ndarray,
  shape: Shape,
  update: np.ndarray,
  starts: Sequence[int],
  sizes: Shape,
) -> np.ndarray:
  """What `lax.dynamic_update_slice` makes of an array."""
  place: list[Any] = []
  full, part = list(array.shape), list(update.shape)
  for axis, start in enumerate(_clamped(starts, shape, sizes)):
    if sizes[axis] == shape[axis] and array.shape[axis] == part[axis]:
      place.append(slice(None))
      continue
    full[axis], part[axis] = shape[axis], sizes[axis]
    place.append(slice(start, start + sizes[axis]))
  ndim = len(shape)
  behind = np.broadcast_shapes(array.shape[ndim:], update.shape[ndim:])
  full[ndim:] = part[ndim:] = behind
  result = np.array(np.broadcast_to(array, full))
  result[tuple(place)] = np.broadcast_to(update, part)
  return compact(result, ndim)


def _clamped(starts: Sequence[int], shape: Shape, sizes: Shape) -> list[int]:
  return [
    min(max(int(start), 0), length - size)
    for start, length, size in zip(starts, shape, sizes, strict=True)
  ]
