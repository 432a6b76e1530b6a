"""Which elements meet in products of arrays, in convolutions and scatters."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.jacobian.program.equations import Equation

# Numbers of output elements, and of the operand's elements that reach them.
Entries = tuple[np.ndarray, np.ndarray]


def dot_general(
  equation: Equation, operand: int, support: np.ndarray, most: int
) -> Entries | None:
  """The entries of d output / d operand of a `dot_general`.

  Args:
    equation: the product.
    operand: 0 or 1.
    support: False where the other operand is zero.
    most: return None if there are more entries.
  """
  contracting, batch = equation.params["dimension_numbers"]
  shapes = [np.shape(item) for item in equation.operands]
  orders = [dot_order(shapes[k], contracting[k], batch[k]) for k in range(2)]
  numbers = np.arange(math.prod(shapes[operand])).reshape(shapes[operand])
  axes, sizes = orders[operand]
  own = numbers.transpose(axes).reshape(sizes)  # [B, I, K]
  axes, sizes = orders[1 - operand]
  meets = support.transpose(axes).reshape(sizes)  # [B, J, K]
  b, j, k = np.nonzero(meets)
  outputs = _product_numbers(own.shape[1], meets.shape, operand)  # [B, I, J]
  if len(b) * own.shape[1] > most:
    return None
  return outputs[b, :, j].ravel(), own[b, :, k].ravel()


class DotOrder(NamedTuple):
  """An operand of a product as an array [batch, free, contracted]."""

  axes: list[int]
  sizes: tuple[int, int, int]


def dot_order(shape: tuple[int, ...], contracting: Any, batch: Any) -> DotOrder:
  """The axes of an operand, and the sizes of their three groups."""
  free = [k for k in range(len(shape)) if k not in (*contracting, *batch)]
  groups = [list(batch), free, list(contracting)]
  b, f, c = (math.prod(shape[k] for k in group) for group in groups)
  return DotOrder(sum(groups, []), (b, f, c))


def _product_numbers(
  free: int, other: tuple[int, ...], operand: int
) -> np.ndarray:
  """The numbers of the outputs, as [batch, own free, the other's free]."""
  batch, others = other[0], other[1]
  if operand == 0:
    return np.arange(batch * free * others).reshape(batch, free, others)
  numbers = np.arange(batch * free * others).reshape(batch, others, free)
  return numbers.transpose(0, 2, 1)


def convolution(
  equation: Equation, operand: int, support: np.ndarray, most: int
) -> Entries | None:
  """The entries of d output / d operand of a convolution with a kernel.

  Args:
    equation: a `conv_general_dilated`.
    operand: 0; of a varying kernel nothing is known.
    support: False where the kernel is zero.
    most: return None if there are more entries.
  """
  params = equation.params
  if operand == 1 or params["batch_group_count"] != 1:
    return None
  left, right, out = params["dimension_numbers"]
  inputs = _numbers(equation.operands[0].shape).transpose(left)
  outputs = _numbers(equation.outputs[0].shape).transpose(out)
  kernel = support.transpose(right)  # [C_out, C_in / groups, *window]
  o, t, i = _window(
    params, inputs.shape[2:], kernel.shape[2:], outputs.shape[2:]
  )
  inputs = inputs.reshape(*inputs.shape[:2], -1)
  outputs = outputs.reshape(*outputs.shape[:2], -1)
  kernel = kernel.reshape(*kernel.shape[:2], -1)
  into, of, place = np.nonzero(kernel[:, :, t])
  batch = len(inputs)
  if len(into) * batch > most:
    return None
  group = into // (len(kernel) // params["feature_group_count"])
  of = of + group * kernel.shape[1]
  return outputs[:, into, o[place]].ravel(), inputs[:, of, i[place]].ravel()


def _numbers(shape: tuple[int, ...]) -> np.ndarray:
  return np.arange(math.prod(shape)).reshape(shape)


def _window(
  params: dict[str, Any],
  inputs: tuple[int, ...],
  window: tuple[int, ...],
  outputs: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Numbers of output places, taps and input places that meet."""
  o = t = i = np.zeros(1, int)
  for d in range(len(inputs)):
    found = meetings(params, d, inputs[d], window[d], outputs[d])
    o, t, i = (
      (whole[:, None] * length + part).ravel()
      for whole, length, part in (
        (o, outputs[d], found.outputs),
        (t, window[d], found.taps),
        (i, inputs[d], found.inputs),
      )
    )
  return o, t, i


class Meetings(NamedTuple):
  """Along an axis, which place of the window meets which of the image."""

  outputs: np.ndarray
  taps: np.ndarray
  inputs: np.ndarray


def meetings(
  params: dict[str, Any], axis: int, image: int, window: int, result: int
) -> Meetings:
  """All meetings along an axis of space, but for those with the padding.

  Args:
    params: of the convolution.
    axis: the number of the axis of space.
    image: its size, without padding and dilation.
    window: the size of the kernel.
    result: the size of the output.
  """
  place, tap = np.indices((result, window)).reshape(2, -1)
  stretched = (
    place * params["window_strides"][axis]
    + tap * params["rhs_dilation"][axis]
    - params["padding"][axis][0]
  )
  source, gap = np.divmod(stretched, params["lhs_dilation"][axis])
  inside = (gap == 0) & (source >= 0) & (source < image)
  return Meetings(place[inside], tap[inside], source[inside])


def scatter_places(
  indices: np.ndarray,
  updates: tuple[int, ...],
  shape: tuple[int, ...],
  params: dict[str, Any],
) -> np.ndarray:
  """The number of the element that each update goes to, or -1.

  The transpose of adding updates to an array takes them out of it.
  """
  with jax.ensure_compile_time_eval():
    numbers = jnp.arange(1, math.prod(shape) + 1, dtype=jnp.float32)
    take = jax.linear_transpose(
      lambda updates: jax.lax.scatter_add(
        jnp.zeros(shape, jnp.float32),
        jnp.asarray(indices),
        updates,
        params["dimension_numbers"],
        mode=params["mode"],
      ),
      jax.ShapeDtypeStruct(updates, jnp.float32),
    )
    (found,) = take(numbers.reshape(shape))
  return np.asarray(found).ravel().astype(int) - 1
