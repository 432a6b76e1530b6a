"""From a user's loss and batches to a function of flat arrays and the step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from revmom.exact.fence import isolate
from revmom.exact.residue import Bits
from revmom.optimizers.gradients import consumed
from revmom.optimizers.packing import Packing
from revmom.optimizers.reversible import ReversibleOptimizer
from revmom.steps.closure import hoist
from revmom.training import second_order
from revmom.training.lengths import check_arrays
from revmom.training.model import Model, Outputs, is_float, shaped
from revmom.training.rounding import gradient_types


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
  start: Any = 0  # the step that the first of the batches is of

  @property
  def rounding(self) -> tuple[Bits, tuple]:
    """Bits that are kept and types of gradients."""
    return self.residue_bits, self.gradient_types


class Source(NamedTuple):
  """Where the batch of a step comes from."""

  make: Callable  # (constants, item, step) -> batch
  constants: list[jax.Array]  # that a function of the step closes over
  stacked: list[jax.Array]  # [steps, ...]
  example: Any  # shapes and dtypes of a batch


def _source(batches: Any, step: jax.ShapeDtypeStruct) -> Source:
  if callable(batches):

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
  return Source(make, [], stacked, structure.unflatten(_items(stacked, step)))


def _items(stacked: list[jax.Array], step: Any) -> list[jax.ShapeDtypeStruct]:
  """Those of one step; of what has no steps there is no item to look at."""
  item = lambda array, step: Data([], [array]).at(step).stacked[0]
  return [
    jax.eval_shape(item, a, step)
    if len(a)
    else jax.ShapeDtypeStruct(a.shape[1:], a.dtype)
    for a in stacked
  ]


def _step(arrays: list) -> jax.ShapeDtypeStruct:
  """The type of steps: inside of `shard_map` they vary as parameters do."""
  zero = lambda arrays: sum(
    (jnp.sum(array).astype(jnp.int32) for array in arrays[:1]),
    jnp.zeros((), jnp.int32),
  )
  return jax.eval_shape(zero, arrays)


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
  source = _source(batches, _step(jax.tree.leaves(params)))
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
    gradient_types=gradient_types(packing, dtypes),
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
