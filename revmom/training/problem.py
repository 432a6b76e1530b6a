"""From a user's loss and batches to a function of flat arrays and the step."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.exact.fence import isolate
from revmom.exact.residue import Bits
from revmom.optimizers.gradients import consumed
from revmom.optimizers.packing import Packing
from revmom.optimizers.reversible import ReversibleOptimizer
from revmom.steps.closure import hoist
from revmom.training import second_order
from revmom.training.model import Model, Outputs, is_float, shaped

_STACK = (
  "A list of batches is stacked by jax.tree.map(lambda *a: jnp.stack(a), "
  "*batches); what yields one batch after the other, such as a generator or a "
  "data loader, is for a revmom.Stepper."
)


class Data(NamedTuple):
  """The arrays that a loss depends on besides the parameters, flat."""

  shared: list[Any]  # the same at all steps
  stacked: list[Any]  # [steps, ...], or those of one step

  def at(self, step: jax.Array) -> "Data":
    """The arrays of one step."""
    pick = lambda a: lax.dynamic_index_in_dim(a, step, keepdims=False)
    return Data(self.shared, [pick(array) for array in self.stacked])

  def plus(self, bars: "Data", step: jax.Array) -> "Data":
    """Cotangents, with those of one step added; None has none."""
    add = lambda total, bar: None if total is None else total + bar
    put = lambda total, bar: None if total is None else total.at[step].set(bar)
    return Data(
      [add(*pair) for pair in zip(self.shared, bars.shared, strict=True)],
      [put(*pair) for pair in zip(self.stacked, bars.stacked, strict=True)],
    )


class Problem(NamedTuple):
  """The static side of a run: what is computed, and how it is kept."""

  # (views, the model's state, data of a step, step) -> (outputs, gradients), of
  # packed arrays; isolated
  gradient: Callable[[list, list, Data, jax.Array], tuple[Outputs, list]]
  # (gradients, views, thresholds, step) -> what a step consumes; isolated
  consume: Callable[[list, list, list, jax.Array], list]
  # (views, state, data of a step, step, cotangents of the gradients and of the
  # outputs, what is not None for data that is differentiated) -> cotangents of
  # views, of the state and of data
  pull_back: Callable[..., tuple[list, list, Data]]
  outputs: Outputs  # shapes and dtypes
  gradient_types: tuple  # of leaves: of the parameters, the narrowest
  checksum_every: int
  residue_bits: Bits = 0  # kept of each rounded gradient; 0: of none


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

    pure, constants, example = hoist(checked, step)
    make = lambda constants, item, t: pure(constants, t)
    return Source(make, constants, [], example)
  structure: Any
  arrays, structure = jax.tree.flatten(batches)
  stacked = [jnp.asarray(array) for array in arrays]
  make = lambda constants, item, t: structure.unflatten(item)
  return Source(make, [], stacked, structure.unflatten(_items(stacked)))


def _items(stacked: list[jax.Array]) -> list[jax.ShapeDtypeStruct]:
  return [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in stacked]


def pose(
  model: Model,
  params: Any,
  batches: Any,
  args: tuple,
  checksum_every: int,
  mode: str,
  optimizer: ReversibleOptimizer,
  packing: Packing,
) -> tuple[Problem, Data]:
  """The static problem of a run, and the arrays it depends on."""
  second_order.check_mode(mode)
  check_arrays("args", args)
  source = _source(batches)
  examples = shaped(params), shaped(model.state), source.example, *args
  pure_loss, loss_constants, example = hoist(model, *examples)
  structure: Any
  shared_structure: Any
  arrays, structure = jax.tree.flatten(params)
  shared, shared_structure = jax.tree.flatten(
    (list(args), loss_constants, source.constants)
  )
  shared = [jnp.asarray(array) for array in shared]
  dtypes = tuple(jnp.result_type(array) for array in arrays)

  def outputs(views, state, data, t):
    args, loss_constants, batch_constants = shared_structure.unflatten(
      data.shared
    )
    batch = source.make(batch_constants, data.stacked, t)
    casts = [view.astype(d) for view, d in zip(views, dtypes, strict=True)]
    value, *beside = pure_loss(
      loss_constants, structure.unflatten(casts), state, batch, *args
    )
    return Outputs(value, *beside)

  def value_of(*inputs):
    out = outputs(*inputs)
    return out.value, out

  def gradient(views, state, data, t):
    def own(views, state, data, t, offsets):
      arrays = packing.unpack(views, offsets)
      gradients, out = jax.grad(value_of, has_aux=True)(arrays, state, data, t)
      return out, packing.pack(gradients)

    return isolate(own, t, views, state, data, t, packing.offsets)

  def consume(gradients, views, thresholds, t):
    return consumed(
      optimizer.preprocess, structure, packing, gradients, views, thresholds, t
    )

  def pull_back(views, state, data, t, gradient_bar, bars, wanted):
    arrays, arrays_bar = packing.unpack(views), packing.unpack(gradient_bar)
    zero = jnp.zeros((), jnp.int32)
    first = lambda arrays, others: outputs(arrays, others[0], others[1], zero)[
      0
    ]
    choice = second_order.choose(mode, first, arrays, (state, data))
    floats = [is_float(leaf) for leaf in state]
    beside_bar = [*bars.state, *bars.aux]

    def own(arrays, others):
      chosen, moving = others[0], iter(others[1])
      again = [
        next(moving) if is_own else leaf
        for is_own, leaf in zip(floats, state, strict=True)
      ]
      out = outputs(arrays, again, merged(data, wanted, chosen), t)
      beside = zip([*out.state, *out.aux], beside_bar, strict=True)
      return out.value, [leaf for leaf, bar in beside if bar is not None]

    others = selected(data, wanted), [s for s in state if is_float(s)]
    own_bar, (chosen_bar, state_bar) = choice(
      own,
      arrays,
      others,
      arrays_bar,
      bars.value,
      [bar for bar in beside_bar if bar is not None],
    )
    found = iter(state_bar)
    return (
      packing.pack(own_bar),
      [next(found) if is_own else None for is_own in floats],
      merged(wanted, wanted, chosen_bar),
    )

  problem = Problem(
    gradient=gradient,
    consume=consume,
    pull_back=pull_back,
    outputs=example,
    gradient_types=tuple(
      min((dtypes[i] for i in group.members), key=lambda d: jnp.finfo(d).nmant)
      for group in packing.groups
    ),
    checksum_every=checksum_every,
  )
  return problem, Data(shared, source.stacked)


def selected(data: Data, wanted: Data) -> list[jax.Array]:
  """The arrays that are wanted: those beside which there is not None."""
  pairs = zip(_flat(data), _flat(wanted), strict=True)
  return [array for array, want in pairs if want is not None]


def merged(data: Data, wanted: Data, chosen: list) -> Data:
  """Puts selected ones back: merged(d, w, selected(d, w)) == d."""
  new = iter(chosen)
  merged = [
    array if want is None else next(new)
    for array, want in zip(_flat(data), _flat(wanted), strict=True)
  ]
  return Data(merged[: len(data.shared)], merged[len(data.shared) :])


def _flat(data: Data) -> list:
  return [*data.shared, *data.stacked]


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
