r"""When products are ready, and how many of their factors are not zero.

The elements of arrays are held as in `compact`, with one axis of lanes behind;
-1 is an element that is known to be zero, and any other number the time from
which on it is ready.  A sum of products

.. math:: y_{bij} = \sum_k l_{bik} r_{bjk}

waits for the factors whose partner is not zero, and is zero without any.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from revmom.analysis.costs.compact import along, compact
from revmom.jacobian.program.equations import Equation

ZERO = -1
# Elements, times lanes, that are looked at together; beyond, all are as late as
# the latest.
MOST_ELEMENTS = 20_000_000
# Places of a convolution's window that are looked at one by one.
MOST_TAPS = 2048


class Product(NamedTuple):
  """What is known of a sum of products."""

  ready: np.ndarray  # when its factors are there
  terms: int  # products of two factors that are not known to be zero
  exact: bool = True  # otherwise, no element is ready before the last


def meet(
  left: np.ndarray, right: np.ndarray, summed: tuple[int, ...]
) -> np.ndarray:
  """The latest factor of the products that are summed over some axes.

  >>> left, right = np.array([[3, -1, 2]]), np.array([[0, 5, 0]])
  >>> meet(left, right, (1,))
  array([3])
  """
  last = lambda array: array.max(summed, keepdims=True, initial=ZERO)
  if _apart(left, right, summed) or _apart(right, left, summed):
    late = last(left), last(right)
    zero = np.minimum(*late) == ZERO
    return np.where(zero, ZERO, np.maximum(*late)).squeeze(summed)
  zero = (left == ZERO) | (right == ZERO)
  return last(np.where(zero, ZERO, np.maximum(left, right))).squeeze(summed)


def _apart(
  left: np.ndarray, right: np.ndarray, summed: tuple[int, ...]
) -> bool:
  """Whether the maximum of max(l, r) is that of l and that of r.

  It is where r has no zeros, and l has none or r is all the same.
  """
  if right.min(initial=0) == ZERO:
    return False
  same = all(right.shape[axis] == 1 for axis in summed)
  return same or left.min(initial=0) > ZERO


def count_terms(
  left: np.ndarray, right: np.ndarray, shape: Sequence[int]
) -> int:
  """Pairs of elements that aren't zero.

  Args:
    left, right: held as in `compact`, with the same axes, and size 1 along
      those that the other alone has; without lanes.
    shape: all axes in full.

  >>> count_terms(np.array([[0, -1, 0]]), np.array([[4], [4]]), (2, 3))
  4
  """
  own = [
    tuple(
      axis
      for axis in range(len(shape))
      if one.shape[axis] > 1 and other.shape[axis] == 1
    )
    for one, other in ((left, right), (right, left))
  ]
  counts = [
    (array != ZERO).sum(axes, keepdims=True, dtype=np.int64)
    for array, axes in zip((left, right), own, strict=True)
  ]
  held = [
    size
    for size, a, b in zip(shape, left.shape, right.shape, strict=True)
    if a == b == 1
  ]
  return int((counts[0] * counts[1]).sum()) * math.prod(held)


def dot(equation: Equation, left: np.ndarray, right: np.ndarray) -> Product:
  """What is known of a `dot_general`."""
  contracting, batch = equation.params["dimension_numbers"]
  shapes = [np.shape(operand) for operand in equation.operands]
  free = [
    [axis for axis in range(len(shapes[k])) if axis not in (*c, *b)]
    for k, (c, b) in enumerate(zip(contracting, batch, strict=True))
  ]
  lead, first, second = len(batch[0]), len(free[0]), len(free[1])

  def arranged(array: np.ndarray, k: int) -> np.ndarray:
    # [batch, left free, right free, contracted, lanes]
    order = [*batch[k], *free[k], *contracting[k], array.ndim - 1]
    array = array.transpose(order)
    ones = range(lead + first, lead + first + second)
    if k == 1:
      ones = range(lead, lead + first)
    return np.expand_dims(array, tuple(ones))

  left, right = arranged(left, 0), arranged(right, 1)
  shape = [
    *(shapes[0][axis] for axis in batch[0]),
    *(shapes[0][axis] for axis in free[0]),
    *(shapes[1][axis] for axis in free[1]),
    *(shapes[0][axis] for axis in contracting[0]),
  ]
  summed = tuple(range(lead + first + second, len(shape)))
  terms = count_terms(left[..., 0], right[..., 0], shape)
  return _product(left, right, summed, terms)


def _product(
  left: np.ndarray, right: np.ndarray, summed: tuple[int, ...], terms: int
) -> Product:
  shape = list(np.broadcast_shapes(left.shape, right.shape))
  if _apart(left, right, summed) or _apart(right, left, summed):
    shape = [n for axis, n in enumerate(shape) if axis not in summed]
  if math.prod(shape) > MOST_ELEMENTS:
    ready = latest([left, right], left.ndim - 1 - len(summed))
    return Product(ready, terms, exact=False)
  return Product(meet(left, right, summed), terms)


def latest(arrays: Iterable[np.ndarray], ndim: int) -> np.ndarray:
  """An array of some rank, all of it as late as any element of the arrays."""
  ready = np.array([ZERO], np.int32)
  for array in arrays:
    axes = tuple(range(array.ndim - 1))
    ready = np.maximum(ready, array.max(axes, initial=ZERO))
  return ready.reshape((1,) * ndim + ready.shape)


def convolution(
  equation: Equation, left: np.ndarray, right: np.ndarray
) -> Product:
  """What is known of a `conv_general_dilated`."""
  params = equation.params
  lhs, rhs, out = params["dimension_numbers"]
  window = [np.shape(equation.operands[1])[axis] for axis in rhs[2:]]
  ndim = len(out)
  if params["batch_group_count"] != 1 or math.prod(window) > MOST_TAPS:
    return Product(latest([left, right], ndim), 0, exact=False)
  shapes = _Shapes.of(equation)
  image = left.transpose(*lhs, ndim)
  kernel = right.transpose(*rhs, ndim)
  image = _grouped(image, 1, shapes.groups, shapes.inputs)
  kernel = _grouped(kernel, 0, shapes.groups, shapes.outputs)
  image = np.expand_dims(image, 2)  # [N, G, 1, I, *space, lanes]
  kernel = np.expand_dims(kernel, 0)  # [1, G, O, I, *window, lanes]
  ready = np.full((1,) * (ndim + 2), ZERO, np.int32)  # [N, G, O, *space, lanes]
  terms, exact = 0, True
  for tap in np.ndindex(*window):
    places = _places(params, tap, shapes)
    if places is None:
      continue
    seen, weights = _patch(image, places), _weights(kernel, tap)
    terms_here = count_terms(seen[..., 0], weights[..., 0], shapes.joint())
    part = _product(seen, weights, (3,), terms_here)
    ready = np.maximum(ready, part.ready)
    terms, exact = terms + part.terms, exact and part.exact
  ready = _ungrouped(ready, shapes.groups, shapes.outputs)
  return Product(compact(ready.transpose(_back(out)), ndim), terms, exact)


class _Shapes(NamedTuple):
  """Sizes of a convolution; of features, those of one group."""

  batch: int
  groups: int
  inputs: int
  outputs: int
  space: tuple[int, ...]  # of the image
  results: tuple[int, ...]  # of the output

  @classmethod
  def of(cls, equation: Equation) -> "_Shapes":
    lhs, rhs, out = equation.params["dimension_numbers"]
    image, kernel = (np.shape(operand) for operand in equation.operands)
    groups = equation.params["feature_group_count"]
    return cls(
      image[lhs[0]],
      groups,
      kernel[rhs[1]],
      kernel[rhs[0]] // groups,
      tuple(image[axis] for axis in lhs[2:]),
      tuple(equation.outputs[0].shape[axis] for axis in out[2:]),
    )

  def joint(self) -> tuple[int, ...]:
    """The joint shape of patches and weights, [N, G, O, I, *results]."""
    return (
      self.batch,
      self.groups,
      self.outputs,
      self.inputs,
      *self.results,
    )


def _grouped(
  array: np.ndarray, axis: int, groups: int, size: int
) -> np.ndarray:
  """Splits an axis of features into one of groups and one within."""
  sizes = (1, 1) if array.shape[axis] == 1 else (groups, size)
  return array.reshape(*array.shape[:axis], *sizes, *array.shape[axis + 1 :])


def _ungrouped(ready: np.ndarray, groups: int, size: int) -> np.ndarray:
  """[N, G, O, ...] to [N, G O, ...]."""
  batch, *sizes = ready.shape[:3]
  rest = ready.shape[3:]
  if sizes == [1, 1]:
    return ready.reshape(batch, 1, *rest)
  full = np.broadcast_to(ready, (batch, groups, size, *rest))
  return full.reshape(batch, groups * size, *rest)


def _back(out: Sequence[int]) -> list[int]:
  """The order that undoes a transposition of all axes but the lanes."""
  return [*(int(axis) for axis in np.argsort(out)), len(out)]


def _places(
  params: dict, tap: tuple[int, ...], shapes: _Shapes
) -> list[tuple[np.ndarray, np.ndarray]] | None:
  """For each axis, where a tap reads the image, and whether it is inside."""
  found = []
  for d, offset in enumerate(tap):
    stretched = (
      np.arange(shapes.results[d]) * params["window_strides"][d]
      + offset * params["rhs_dilation"][d]
      - params["padding"][d][0]
    )
    place, gap = np.divmod(stretched, params["lhs_dilation"][d])
    inside = (gap == 0) & (place >= 0) & (place < shapes.space[d])
    if not inside.any():
      return None
    found.append((place, inside))
  return found


def _patch(image: np.ndarray, places: list) -> np.ndarray:
  """What a tap reads, ZERO outside of the image: [N, G, 1, I, *results]."""
  for d, (place, inside) in enumerate(places):
    axis = 4 + d
    if image.shape[axis] == 1 and inside.all():
      continue
    where = np.where(inside, place, 0)
    if image.shape[axis] == 1:
      where = np.zeros_like(where)
    image = along(image, axis, where)
    shape = [1] * image.ndim
    shape[axis] = len(inside)
    image = np.where(inside.reshape(shape), image, ZERO)
  return image


def _weights(kernel: np.ndarray, tap: tuple[int, ...]) -> np.ndarray:
  """The weights of a tap, [1, G, O, I, 1, ..., 1, lanes]."""
  for d, offset in enumerate(tap):
    axis = 4 + d
    if kernel.shape[axis] != 1:
      kernel = along(kernel, axis, slice(offset, offset + 1))
  return kernel
