"""Floating-point results that do not depend on what is computed nearby.

Compilers turn a product and a sum that meet in one kernel into a fused
multiply-add, which rounds once instead of twice, and compute one value again in
every kernel that wants it.  What meets depends on everything else that is
computed nearby, so that the same equation may give other bits in a forward and
in a reverse pass.  Elementwise equations are fenced: nothing behind a fence
joins what is before it.  Whole programs, such as a gradient, are isolated: a
branch is compiled by itself.

Both rest on a number that is zero and that no compiler can know to be.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from revmom.exact import fixed_point

# Elements.  XLA compiles a loop on CPU as one function, branches and all, if a
# round of it touches less than a kilobyte; the branch not taken touches more.
_LARGE = 2**10


def origin(arrays: Sequence[jax.Array]) -> jax.Array:
  """Zero, but no compiler can tell that it is: int32 [], not even batched.

  Args:
    arrays: of integers on a grid; the first that has elements is asked.

  >>> origin([jnp.arange(3)])
  Array(0, dtype=int32)
  """
  for array in arrays:
    if array.size:  # all of it, since it may be spread over devices
      return _unknown_zero(jnp.max(array))
  return jnp.zeros((), jnp.int32)


@custom_vmap
def _unknown_zero(integer: jax.Array) -> jax.Array:
  never = fixed_point.limit(integer.dtype) + 12_345
  return (integer == never).astype(jnp.int32)


@_unknown_zero.def_vmap
def _same_for_all(axis_size, batched, integers):
  """One for the whole batch: a branch on a batched one would be no branch."""
  return _unknown_zero(jnp.max(integers) if batched[0] else integers), False


@jax.custom_jvp
def fence(values: jax.Array, step: jax.Array) -> jax.Array:
  """The same values, but no compiler can tell that they are.

  Their bits are combined with the sign of the step, which is never negative;
  that is cheaper than a branch and, unlike an optimization barrier, stays in
  the program.  It differentiates as the identity.

  Args:
    values: floats of any type and shape.
    step: int32 [], at least 0 and not a constant of the program: counted from
      `origin`.

  >>> fence(jnp.array([1.5, -2.0]), jnp.array(7))
  Array([ 1.5, -2. ], dtype=float32)
  """
  bits = jnp.dtype(f"int{8 * values.dtype.itemsize}")
  zero = (step >> 31).astype(bits)
  raw = lax.bitcast_convert_type(values, bits)
  return lax.bitcast_convert_type(raw ^ zero, values.dtype)


@fence.defjvp
def _as_identity(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
  return fence(*primals), tangents[0]


def isolate(function: Callable[..., Any], step: jax.Array, *args: Any) -> Any:
  """function(*args), compiled by itself wherever it is called.

  Two calls with the same arguments give the same bits, whatever the programs
  around them do with the results, as long as both use all of them: see
  `keep_alive`.  The condition of the branch can't be known when it is compiled.
  Where the condition is false there is nothing but NaN.

  Args:
    function: of pytrees of arrays.
    step: see `fence`.

  >>> isolate(jnp.sum, jnp.array(3), jnp.arange(4.0))
  Array(6., dtype=float32)
  """
  # On one axis there is but one layout that a compiler can choose, and none for
  # a number: what reshapes it would get into its products.  Where arrays may be
  # spread over devices, they keep the axes along which they are.
  on_one = jax.device_count() == 1
  flatten = lambda a: jnp.reshape(a, -1) if on_one and jnp.ndim(a) > 1 else a
  structure: Any
  out_structure: Any
  leaves, structure = jax.tree.flatten(args)
  inputs = [jax.typeof(leaf) for leaf in map(jnp.asarray, leaves)]
  results, out_structure = jax.tree.flatten(jax.eval_shape(function, *args))

  def once(*flat: jax.Array) -> list[jax.Array]:
    arrays = [a.reshape(x.shape) for a, x in zip(flat, inputs, strict=True)]
    out = function(*structure.unflatten(arrays))
    return [flatten(leaf) for leaf in jax.tree.leaves(out)]

  def never(*flat: jax.Array) -> list[jax.Array]:
    # Sorted, since a compiler does not make away with the memory for that.
    angles = jnp.arange(_LARGE, dtype=jnp.float32) + step.astype(jnp.float32)
    noise = jnp.sort(jnp.sin(angles))
    nan = jnp.sqrt(-1 - noise[0] ** 2)
    return [flatten(jnp.full_like(x, nan.astype(x.dtype))) for x in results]

  flat = [flatten(leaf) for leaf in leaves]
  out = lax.cond(step >= 0, once, never, *flat)
  return out_structure.unflatten(
    [a.reshape(x.shape) for a, x in zip(out, results, strict=True)]
  )


def keep_alive(step: jax.Array, values: jax.Array) -> jax.Array:
  """The step, in a way that needs a value: it won't be dropped as unused.

  A program that leaves one of its results out is another program.

  Args:
    step: see `fence`.
    values: a float [].

  >>> keep_alive(jnp.array(7), jnp.array(0.5))
  Array(7, dtype=int32)
  """
  bits = jnp.dtype(f"int{8 * values.dtype.itemsize}")
  raw = lax.bitcast_convert_type(values, bits).astype(jnp.int32)
  return step ^ (raw & (step >> 31))
