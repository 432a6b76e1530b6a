"""Different optimizers for different parameters."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, Self

import jax

from revmom.exact.pytree import static
from revmom.optimizers.reversible import ReversibleOptimizer, check_optimizer
from revmom.optimizers.slot import AVERAGE, PARAMS


class Labels(NamedTuple):
  """A pytree of labels as a function of the parameters, which can be hashed."""

  leaves: tuple[Hashable, ...]
  structure: Any

  def __call__(self, params: Any) -> Any:
    return self.structure.unflatten(self.leaves)


class Partition(ReversibleOptimizer, kw_only=True):
  """One optimizer for each label; build it with `partition`."""

  optimizers: dict[Hashable, ReversibleOptimizer]
  labels: Callable[[Any], Any] = static()

  def parts(self, params: Any) -> tuple[list[tuple[Any, list[int]]], dict]:
    labels = self._labels(params)
    parts = []
    for name, optimizer in self.optimizers.items():
      own = {i for i, label in enumerate(labels) if label == name}
      within, _ = optimizer.replace(shown_bits=self.shown_bits).parts(params)
      parts += [
        (part, [leaf for leaf in leaves if leaf in own])
        for part, leaves in within
      ]
    return parts, {} if self.clip is None else {"clip": self.clip}

  @property
  def floors(self) -> dict[str, float]:
    """The lowest floor of each role, among all optimizers."""
    found: dict[str, float] = {}
    for optimizer in self.optimizers.values():
      for name, floor in optimizer.floors.items():
        found[name] = min(floor, found.get(name, 1.0))
    return found

  def with_floors(self, floors: Mapping[str, float]) -> Self:
    parts = self.optimizers.items()
    return self.replace(
      optimizers={label: own.with_floors(floors) for label, own in parts}
    )

  def _labels(self, params: Any) -> list[Hashable]:
    """Of each parameter array."""
    labels = self.labels(params)
    try:
      found = jax.tree.leaves(jax.tree.broadcast(labels, params))
    except ValueError as error:
      raise ValueError(
        f"the labels are {labels}, but the parameters are "
        f"{jax.tree.structure(params)}; give one label for each array, or for "
        "all arrays of a subtree."
      ) from error
    unknown = sorted({str(l) for l in found if l not in self.optimizers})
    if unknown:
      raise ValueError(
        f"some parameters are labelled {', '.join(unknown)}, but there are "
        f"optimizers for {', '.join(map(str, self.optimizers))} only."
      )
    return found


def partition(
  optimizers: Mapping[Any, ReversibleOptimizer],
  labels: Any,
) -> Partition:
  """Different optimizers for different parameter arrays.

  Args:
    optimizers: label (a string or an integer) -> optimizer, which may be a
      partition itself, such as `revmom.muon`.  Hyperparameters that are
      pytrees are like all the parameters, not only those of their label.
    labels: a pytree of labels like the parameters, or a prefix of it, or a
      function of the parameters that gives one (optax calls it
      `param_labels`); it is called with shapes as well, and with all the
      parameters inside of another partition, too.

  Returns:
    A `ReversibleOptimizer`.

  Raises:
    ValueError: the optimizers have different types of integers or grids of
      parameters, or clip or preprocess on their own; a label has no optimizer.

  >>> import jax.numpy as jnp, revmom
  >>> slow_and_fast = {
  ...   "slow": revmom.sgd(0.1, 0.9),
  ...   "fast": revmom.sgd(1.0, 0.9),
  ... }
  >>> optimizer = revmom.partition(
  ...   slow_and_fast, lambda params: {"w": "slow", "b": "fast"}
  ... )
  >>> state = optimizer.init({"w": jnp.ones(2), "b": jnp.ones(1)}, num_steps=1)
  >>> params = optimizer.params(optimizer.forward(state, lambda p: p))
  >>> print(params["w"], params["b"])
  [0.9 0.9] [0.]
  """
  if not optimizers:
    raise ValueError("partition got no optimizers; give one for each label.")
  for label, optimizer in optimizers.items():
    check_optimizer(f"partition, for the label {label!r},", optimizer)
  alike = {
    optimizer.role(PARAMS)._replace(floor=None)
    for optimizer in optimizers.values()
  }
  if len(alike) != 1:
    raise ValueError(
      "the optimizers must agree on the fraction bits of the parameters and on "
      "the type of integers, but they have "
      + " and ".join(sorted(f"{r.bits} of {r.integer}" for r in alike))
      + "."
    )
  for label, optimizer in optimizers.items():
    if optimizer.clip is not None or optimizer.preprocess is not None:
      raise ValueError(
        f"the optimizer {label!r} clips or preprocesses gradients, which it "
        "would do without those of the others; give the partition to "
        "revmom.clipped or revmom.preprocessed instead."
      )
  average = [AVERAGE in optimizer.names for optimizer in optimizers.values()]
  if any(average) and not all(average):
    raise ValueError(
      "some of the optimizers keep an average of their parameters and some "
      "don't; give the partition to revmom.averaged instead."
    )
  return Partition(
    optimizers=dict(optimizers),
    labels=labels if callable(labels) else _labels_of(labels),
    roles=tuple(alike),
  )


def _labels_of(tree: Any) -> Any:
  leaves, structure = jax.tree.flatten(tree)
  for label in leaves:
    if not isinstance(label, str | int):
      raise ValueError(
        f"{label!r} is no label; labels are strings or integers."
      )
  return Labels(tuple(leaves), structure)
