"""What a step makes of gradients before it consumes them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import DTypeLike

from revmom.exact.fence import isolate
from revmom.optimizers.packing import Packing

_NUDGE = 1e-15  # its square is a normal number, too


def compute_dtype(dtype: DTypeLike) -> DTypeLike:
  """Where gradients and adjoints of parameters of a type are computed."""
  narrow = jnp.dtype(dtype).itemsize < 4
  return jnp.dtype("float32") if narrow else jnp.dtype(dtype)


def consumed(
  preprocess: optax.GradientTransformation | None,
  structure: Any,
  packing: Packing,
  gradients: Sequence[jax.Array],
  views: Sequence[jax.Array],
  thresholds: Sequence[jax.Array],
  step: jax.Array,
) -> list[jax.Array]:
  """Gradients as a step consumes them: transformed, then clipped; isolated.

  Args:
    preprocess: a stateless transformation, or None.
    structure: of the parameters.
    packing: of the parameters.
    gradients: packed, like the parameters.
    views: the parameters as floats, packed.
    thresholds: of the norm: none, one, or one for each array.
    step: see `revmom.exact.fence.isolate`.
  """
  if preprocess is None and not thresholds:
    return list(gradients)
  tree = lambda packed: structure.unflatten(packing.unpack(packed))

  def change(gradients, views, thresholds):
    if preprocess is not None:
      changed = _transformed(preprocess, tree(gradients), tree(views))
      gradients = packing.pack(jax.tree.leaves(changed))
    return clip(gradients, thresholds)

  return isolate(change, step, list(gradients), list(views), list(thresholds))


def _transformed(
  preprocess: optax.GradientTransformation, gradients: Any, params: Any
) -> Any:
  """The gradients after a transformation.

  A norm has no derivative at zero, where clipping is the identity; so the
  value is that of the gradients, and the derivative is of such a little beside.
  """
  change = lambda gradients: preprocess.update(
    gradients, preprocess.init(params), params
  )[0]
  nudged = jax.tree.map(lambda g: jnp.where(g == 0, g + _NUDGE, g), gradients)
  near = change(nudged)
  return jax.tree.map(
    lambda value, near: value + (near - lax.stop_gradient(near)),
    change(lax.stop_gradient(gradients)),
    near,
  )


def clip(gradients: list[jax.Array], thresholds: list[jax.Array]) -> list:
  """g <- g min(1, c / |g|), of all arrays together or of each on its own.

  Norms are those of gradients scaled by a power of two, which is exact, so
  that squares neither overflow nor vanish; at zero the derivative is that of
  the identity.
  """
  if not thresholds or not gradients:
    return gradients
  groups = [gradients] if len(thresholds) == 1 else [[g] for g in gradients]
  clipped = []
  for group, threshold in zip(groups, thresholds, strict=True):
    clipped += _clip_together(group, threshold)
  return clipped


def _clip_together(group: list[jax.Array], threshold: jax.Array) -> list:
  dtype = max((g.dtype for g in group), key=lambda d: d.itemsize)
  wide = [gradient.astype(dtype) for gradient in group]
  largest = [jnp.max(jnp.abs(g), initial=0) for g in wide]
  bound = jnp.finfo(dtype).maxexp - 2
  exponent = jnp.frexp(lax.stop_gradient(jnp.max(jnp.stack(largest))))[1]
  scale = jnp.ldexp(jnp.ones((), dtype), -jnp.clip(exponent, -bound, bound))
  scaled = [gradient * scale for gradient in wide]
  squares = jnp.sum(jnp.stack([jnp.sum(g * g) for g in scaled]))
  positive = squares > 0
  norm = jnp.sqrt(jnp.where(positive, squares, 1))
  large = positive & (norm > threshold.astype(dtype) * scale)
  factor = jnp.where(large, threshold.astype(dtype) / norm, 1)
  return [
    jnp.where(large, small * factor, whole).astype(gradient.dtype)
    for small, whole, gradient in zip(scaled, wide, group, strict=True)
  ]
