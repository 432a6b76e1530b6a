"""From a user's loss and batches to a function of flat arrays and the step."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.exact import residue
from revmom.exact.fence import isolate
from revmom.optimizers.dynamics import clip, compute_dtype
from revmom.optimizers.packing import Packing
from revmom.optimizers.reversible import ReversibleOptimizer
from revmom.training import run as runs
from revmom.training import second_order
from revmom.training.closure import hoist

_STACK = (
  "A list of batches is stacked by jax.tree.map(lambda *a: jnp.stack(a), "
  "*batches); what yields one batch after the other, such as a generator or a "
  "data loader, is for a revmom.Stepper."
)


class Pieces(NamedTuple):
  """The arrays that a loss depends on besides the parameters, flat."""

  shared: list[jax.Array]
  stacked: list[jax.Array]


class Source(NamedTuple):
  """Where the batch of a step comes from."""

  make: Callable  # (constants, item, step) -> batch
  constants: list[jax.Array]  # that a function of the step closes over
  stacked: list[jax.Array]  # [steps, ...]
  example: Any  # shapes and dtypes of a batch


def check_arrays(name: str, tree: Any) -> None:
  """Raises ValueError for a leaf that is no array of numbers."""
  for path, leaf in jax.tree.leaves_with_path(
    tree, is_leaf=lambda node: isinstance(node, Iterator)
  ):
    place = f"{name}{jax.tree_util.keystr(path)}"
    if isinstance(leaf, str | bytes):
      kind = f"the string {leaf!r}"
    elif isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OSU":
      kind = f"an array of {leaf.dtype}"
    else:
      continue
    raise ValueError(
      f"{place} is {kind}; a loss takes arrays of numbers.  Leave it out, "
      "give numbers in its place, or let the loss close over it."
    )


def _source(batches: Any) -> Source:
  if callable(batches):
    step = jax.ShapeDtypeStruct((), jnp.int32)

    def checked(step: jax.Array) -> Any:
      batch = batches(step)
      check_arrays("batches(step)", batch)
      return batch

    pure, constants = hoist(checked, step)
    make = lambda constants, item, t: pure(constants, t)
    return Source(make, constants, [], jax.eval_shape(checked, step))
  structure: Any
  arrays, structure = jax.tree.flatten(batches)
  stacked = [jnp.asarray(array) for array in arrays]
  make = lambda constants, item, t: structure.unflatten(item)
  return Source(make, [], stacked, structure.unflatten(_items(stacked)))


def _items(stacked: list[jax.Array]) -> list[jax.ShapeDtypeStruct]:
  return [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in stacked]


def pose(
  loss_fn: Callable[..., jax.Array],
  params: Any,
  batches: Any,
  args: tuple,
  checksum_every: int,
  mode: str,
  optimizer: ReversibleOptimizer,
  packing: Packing,
) -> tuple[runs.Problem, Pieces]:
  """The static problem of a run, and the arrays it depends on."""
  second_order.check_mode(mode)
  check_arrays("args", args)
  source = _source(batches)
  pure_loss, loss_constants = hoist(
    loss_fn, _shaped(params), source.example, *args
  )
  _check_scalar(loss_fn, _shaped(params), source.example, args)
  structure: Any
  shared_structure: Any
  arrays, structure = jax.tree.flatten(params)
  shared, shared_structure = jax.tree.flatten(
    (list(args), loss_constants, source.constants)
  )
  shared = [jnp.asarray(array) for array in shared]
  dtypes = tuple(jnp.result_type(array) for array in arrays)

  def loss(packed, others, t):
    shared, item = others
    views = packing.unpack(packed)
    args, loss_constants, batch_constants = shared_structure.unflatten(shared)
    batch = source.make(batch_constants, item, t)
    casts = [view.astype(d) for view, d in zip(views, dtypes, strict=True)]
    return pure_loss(loss_constants, structure.unflatten(casts), batch, *args)

  def gradient(views, others, t):
    return isolate(jax.value_and_grad(loss), t, views, others, t)

  def consume(gradients, views, thresholds, t):
    return isolate(consumed, t, gradients, views, thresholds)

  def consumed(gradients, views, thresholds):
    if optimizer.preprocess is not None:
      changed = optimizer.transform(
        structure.unflatten(packing.unpack(gradients)),
        structure.unflatten(packing.unpack(views)),
      )
      gradients = packing.pack(jax.tree.leaves(changed))
    return clip(gradients, thresholds)

  def pull_back(others_of, views, chosen, t, gradient_bar, value_bar):
    first = lambda views, others: loss(views, others, jnp.zeros((), jnp.int32))
    others = _shaped(shared), _items(source.stacked)
    choice = second_order.choose(mode, first, views, others)
    own = lambda views, chosen: loss(views, others_of(chosen), t)
    return choice(own, views, chosen, gradient_bar, value_bar)

  consumes = optimizer.preprocess is not None or optimizer.clip is not None
  problem = runs.Problem(
    gradient=gradient,
    consume=consume if consumes else None,
    pull_back=pull_back,
    select=lambda others: ([], []),
    merge=lambda others, chosen: others,
    dtypes=tuple(compute_dtype(dtype) for dtype in packing.first(dtypes)),
    digits=tuple(
      min(residue.digits_of(dtypes[i]) for i in group.members)
      for group in packing.groups
    ),
    checksum_every=checksum_every,
  )
  return problem, Pieces(shared, source.stacked)


def _shaped(tree: Any) -> Any:
  return jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), tree
  )


def _check_scalar(loss_fn, params, batch, args) -> None:
  out = jax.eval_shape(loss_fn, params, batch, *args)
  shape = getattr(out, "shape", None)
  if shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
    raise ValueError(
      f"loss_fn returned {out}; it must return one floating-point scalar "
      "(take a mean or a sum, and return nothing beside it)."
    )


def selector(masks: tuple) -> Callable:
  """Picks the masked ones of (shared, item)."""

  def select(others):
    return tuple(
      [a for a, chosen in zip(arrays, mask, strict=True) if chosen]
      for arrays, mask in zip(others, masks, strict=True)
    )

  return select


def merger(masks: tuple) -> Callable:
  """Puts picked ones back: merge(others, select(others)) == others."""

  def merge(others, chosen):
    merged = []
    for arrays, mask, own in zip(others, masks, chosen, strict=True):
      replacements = iter(own)
      merged.append(
        [
          next(replacements) if m else a
          for a, m in zip(arrays, mask, strict=True)
        ]
      )
    return tuple(merged)

  return merge


def run_length(
  optimizer: ReversibleOptimizer, batches: Any, num_steps: int | None
) -> int:
  """The length of a run, on which all its inputs must agree."""
  known = {}
  if not callable(batches):
    check_arrays("batches", batches)
    for path, leaf in jax.tree.leaves_with_path(
      batches, is_leaf=lambda node: isinstance(node, Iterator)
    ):
      name = f"batches{jax.tree_util.keystr(path)}"
      if not hasattr(leaf, "dtype") and not np.isscalar(leaf):
        raise ValueError(f"{name} is a {type(leaf).__name__}.  {_STACK}")
      if jnp.ndim(leaf) == 0:
        raise ValueError(
          f"{name} is a scalar; every array of the batches needs a leading "
          f"step axis.  {_STACK}"
        )
      known[name] = jnp.shape(leaf)[0]
  if num_steps is not None:
    if num_steps < 0:
      raise ValueError(f"num_steps={num_steps}; a run has zero steps or more.")
    known["num_steps"] = num_steps
  scheduled = optimizer.num_steps()
  if scheduled is not None:
    known["the optimizer's hyperparameters"] = scheduled
  if not known:
    raise ValueError(
      "batches is a function of the step, so pass num_steps, the length of "
      "the run."
    )
  if len(set(known.values())) > 1:
    raise ValueError(
      "the lengths of the run disagree: "
      + ", ".join(f"{name}: {length}" for name, length in known.items())
      + (f".  {_STACK}" if isinstance(batches, list) else "")
    )
  return next(iter(known.values()))
