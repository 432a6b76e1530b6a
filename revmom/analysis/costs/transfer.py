"""When the results of primitives are ready, element by element.

These are the transfer functions of the dataflow analysis.  Those of products
are in `products`, and those of moves to places that are known from the start
in `compact`.
"""

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np

from revmom.analysis.costs import compact
from revmom.analysis.costs.facts import MASKED, Fact
from revmom.analysis.costs.products import ZERO, latest
from revmom.jacobian.program.constants import apply_now
from revmom.jacobian.program.contractions import scatter_places
from revmom.jacobian.program.equations import Equation
from revmom.jacobian.program.primitives import INDEXING, KEEP_ZEROS

# Zero where all of their operands are.
SUMS = frozenset("add add_any clamp complex max min or sub xor".split())
# Zero where any of their operands is.
PRODUCTS = frozenset(["and", "mul"])

# They leave a mask what it is.
_KEEP_MASKED = frozenset(
  "convert_element_type copy copy_p name pvary reduce_precision "
  "sharding_constraint stop_gradient".split()
)


def elementwise(name: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
  """When the results of functions of single elements are ready."""
  if name == "max":
    return _last(arrays)
  if name in _KEEP_MASKED:
    return arrays[0]
  if name in ("add", "add_any", "sub"):
    masked = _first(arrays[:1] if name == "sub" else arrays) == MASKED
    return np.where(masked, MASKED, _last(list(map(unmasked, arrays))))
  if name in ("exp", "exp2"):
    masked = arrays[0] == MASKED
    return np.where(masked, ZERO, np.maximum(arrays[0], 0))
  arrays = list(map(unmasked, arrays))
  if name in SUMS:
    return _last(arrays)
  if name in KEEP_ZEROS or name in PRODUCTS:
    zero = _first(arrays[:1] if name in KEEP_ZEROS else arrays) == ZERO
    return np.where(zero, ZERO, _last(arrays))
  return np.maximum(_last(arrays), 0)


def unmasked(ready: np.ndarray) -> np.ndarray:
  """The times, with masks taken for constants like any other."""
  if ready.min(initial=0) > MASKED:
    return ready
  return np.where(ready == MASKED, 0, ready)


def _last(arrays: Sequence[np.ndarray]) -> np.ndarray:
  return reduce(np.maximum, arrays)


def _first(arrays: Sequence[np.ndarray]) -> np.ndarray:
  return reduce(np.minimum, arrays)


def select(facts: Sequence[Fact]) -> np.ndarray:
  """When a selection is ready: its case, where that is known, or all cases."""
  predicate, *cases = facts
  arrays = [case.ready for case in cases]
  if predicate.value is None:
    ready = elementwise("max", arrays)
    return np.where(ready < 0, ready, np.maximum(ready, predicate.ready))
  chosen = predicate.value.astype(int)[..., None]
  ready = arrays[-1]
  for number, array in enumerate(arrays[:-1]):
    ready = np.where(chosen == number, array, ready)
  return compact.compact(ready, ready.ndim - 1)


def reduction(equation: Equation, array: np.ndarray) -> np.ndarray:
  """When sums, products and the like over axes are ready."""
  axes = tuple(equation.params["axes"])
  if equation.name == "reduce_max":
    return array.max(axes, initial=MASKED)
  array = unmasked(array)
  ready = array.max(axes, initial=ZERO)
  if equation.name in ("reduce_prod", "reduce_and"):
    zero = array.min(axes, initial=0) == ZERO
    return np.where(zero, ZERO, ready)
  return ready


def accumulate(equation: Equation, array: np.ndarray) -> np.ndarray:
  """When running sums are ready: they wait for all that came before."""
  axis, reverse = equation.params["axis"], equation.params["reverse"]
  if array.shape[axis] == 1:
    ready = array
  elif reverse:
    ready = np.flip(np.maximum.accumulate(np.flip(array, axis), axis), axis)
  else:
    ready = np.maximum.accumulate(array, axis)
  zero = equation.name == "cumsum"
  return ready if zero else np.maximum(ready, 0)


def slice_from(equation: Equation, facts: Sequence[Fact]) -> np.ndarray:
  """When a dynamic slice is ready."""
  source, *starts = facts
  shape = equation.operands[0].shape
  sizes = tuple(equation.params["slice_sizes"])
  places = [int(start.value) for start in starts if start.value is not None]
  if len(places) < len(starts):
    axes = tuple(axis for axis, n in enumerate(sizes) if n != shape[axis])
    ready = source.ready.max(axes, keepdims=True, initial=MASKED)
    return _after(ready, starts)
  return compact.take_slice(source.ready, shape, places, sizes)


def slice_into(equation: Equation, facts: Sequence[Fact]) -> np.ndarray:
  """When an array with an updated dynamic slice is ready."""
  source, update, *starts = facts
  shape, sizes = (operand.shape for operand in equation.operands[:2])
  places = [int(start.value) for start in starts if start.value is not None]
  if len(places) < len(starts):
    axes = tuple(axis for axis, n in enumerate(sizes) if n != shape[axis])
    new = update.ready.max(axes, keepdims=True, initial=MASKED)
    return _after(np.maximum(source.ready, new), starts)
  return compact.put_slice(source.ready, shape, update.ready, places, sizes)


def _after(ready: np.ndarray, knobs: Sequence[Fact]) -> np.ndarray:
  """The times, but not before that of what tells which elements to take."""
  late = latest([knob.ready for knob in knobs], ready.ndim - 1)
  return np.where(ready < 0, ready, np.maximum(ready, late))


def move(equation: Equation, facts: Sequence[Fact]) -> list[np.ndarray] | None:
  """When moved elements are ready, by moving their times; None if unknown."""
  first, last = INDEXING[equation.name]
  knobs = range(len(facts))[first:last] if first is not None else range(0)
  if any(facts[k].value is None for k in knobs):
    return None
  lanes = max(fact.ready.shape[-1] for fact in facts)
  fill = {"fill_value": 0} if "fill_value" in equation.params else {}
  moved = equation._replace(params={**equation.params, **fill})

  def lane(number: int) -> list[np.ndarray]:
    arrays = []
    for k, (fact, operand) in enumerate(
      zip(facts, equation.operands, strict=True)
    ):
      own = fact.ready[..., min(number, fact.ready.shape[-1] - 1)]
      array = own if fact.value is None or k not in knobs else fact.value
      arrays.append(np.broadcast_to(array, np.shape(operand)))
    return [np.asarray(result) for result in apply_now(moved, arrays)]

  results = zip(*map(lane, range(lanes)), strict=True)
  return [compact.compact(np.stack(of, -1), of[0].ndim) for of in results]


def look_up(equation: Equation, facts: Sequence[Fact]) -> np.ndarray:
  """When a gather from unknown places is ready: with its index and the last."""
  source, indices = facts
  numbers = equation.params["dimension_numbers"]
  ndim = len(equation.outputs[0].shape)
  late = indices.ready.max(-2)  # of the parts of an index
  kept = [axis for axis in range(ndim) if axis not in numbers.offset_dims]
  shape = [1] * ndim
  for axis, size in zip(kept, late.shape[:-1], strict=True):
    shape[axis] = size
  anywhere = latest([source.ready], ndim)
  return np.maximum(late.reshape(*shape, late.shape[-1]), anywhere)


def scatter(equation: Equation, facts: Sequence[Fact]) -> np.ndarray | None:
  """When an array with updates at known places is ready."""
  source, indices, updates = facts
  shape, size = equation.operands[0].shape, equation.operands[2].shape
  # `scatter_places` counts in float32.
  if indices.value is None or math.prod(shape) >= 2**24:
    return None
  index = np.broadcast_to(indices.value, equation.operands[1].shape)
  places = scatter_places(index, size, shape, equation.params)
  new = compact.expand(unmasked(updates.ready), size)
  new = new.reshape(len(places), new.shape[-1])
  lanes = max(source.ready.shape[-1], new.shape[-1])
  ready = compact.expand(unmasked(source.ready), shape)
  ready = np.broadcast_to(ready, (*shape, lanes)).reshape(-1, lanes).copy()
  np.maximum.at(ready, places[places >= 0], new[places >= 0])
  return compact.compact(ready.reshape(*shape, lanes), len(shape))


def window(equation: Equation, array: np.ndarray) -> np.ndarray:
  """When reductions of windows, such as those of pooling, are ready."""
  params = equation.params
  for axis, size in enumerate(params["window_dimensions"]):
    if size > 1 and array.shape[axis] > 1:
      array = _windows(
        array,
        axis,
        equation.outputs[0].shape[axis],
        [offset * params["window_dilation"][axis] for offset in range(size)],
        params["window_strides"][axis],
        params["padding"][axis][0],
        params["base_dilation"][axis],
      )
  return array


def _windows(
  array: np.ndarray,
  axis: int,
  length: int,
  offsets: Sequence[int],
  stride: int,
  before: int,
  gap: int,
) -> np.ndarray:
  places = np.arange(length)[:, None] * stride + np.array(offsets) - before
  source, rest = np.divmod(places, gap)
  inside = (rest == 0) & (source >= 0) & (source < array.shape[axis])
  seen = compact.along(array, axis, np.where(inside, source, 0))
  mask = inside.reshape(inside.shape + (1,) * (array.ndim - axis - 1))
  return np.where(mask, seen, ZERO).max(axis + 1)
