"""Different optimizers for different parameters, and averages of them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import struct

from revmom.optimizers.choices import check_factor, floor
from revmom.optimizers.hyperparameters import wrap
from revmom.optimizers.leaf import AVERAGE, PARAMS
from revmom.optimizers.reversible import ReversibleOptimizer


class Partition(ReversibleOptimizer, kw_only=True):
  """One optimizer for each label; build it with `partition`."""

  optimizers: dict[str, ReversibleOptimizer]
  labels: Callable[[Any], Any] = struct.field(pytree_node=False)

  def parts(self, params: Any) -> tuple[list[tuple[Any, list[int]]], dict]:
    labels = jax.tree.leaves(jax.tree.broadcast(self.labels(params), params))
    unknown = sorted(set(map(str, labels)) - set(self.optimizers))
    if unknown:
      raise ValueError(
        f"some parameters are labelled {', '.join(unknown)}, but there are "
        f"optimizers for {', '.join(self.optimizers)} only."
      )
    parts = [
      (
        optimizer.replace(shown_bits=self.shown_bits),
        [i for i, label in enumerate(labels) if label == name],
      )
      for name, optimizer in self.optimizers.items()
    ]
    return parts, {} if self.clip is None else {"clip": self.clip}


def partition(
  optimizers: Mapping[str, ReversibleOptimizer],
  labels: Any,
  *,
  clip: Any = None,
  preprocess: Any = None,
) -> Partition:
  """Different optimizers for different parameter arrays.

  Args:
    optimizers: label -> optimizer.  Hyperparameters that are pytrees are like
      all the parameters, not only those of their label.
    labels: a function of the parameters that gives a pytree of labels like
      them, or a prefix of it (optax calls it `param_labels`); it is called with
      shapes as well.
    clip: largest norm of all gradients together, or, as a pytree like the
      parameters, of each array.
    preprocess: a stateless optax transformation of all gradients.

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
  alike = {
    (dict(o.fraction_bits)[PARAMS], o.integer) for o in optimizers.values()
  }
  if len(alike) != 1:
    raise ValueError(
      "the optimizers must agree on the fraction bits of the parameters and on "
      f"the type of integers, but they have {sorted(map(str, alike))}."
    )
  for label, optimizer in optimizers.items():
    if optimizer.clip is not None or optimizer.preprocess is not None:
      raise ValueError(
        f"the optimizer {label!r} clips or preprocesses gradients, which it "
        "would do without those of the others; give clip and preprocess to "
        "partition."
      )
  ((bits, integer),) = alike
  return Partition(
    optimizers=dict(optimizers),
    labels=labels,
    clip=wrap(clip),
    preprocess=preprocess,
    fraction_bits=((PARAMS, bits),),
    floors=(),
    integer=integer,
  )


def averaged(optimizer: ReversibleOptimizer, decay: Any) -> ReversibleOptimizer:
  r"""The optimizer, with an average of the parameters after each step.

  .. math::
    a' = \rho a + (1 - \rho)\,\theta', \qquad
    \bar\theta = a' / (1 - \textstyle\prod \rho)

  `optimizer.average_params(state)` and `run.average` give it; gradients go
  through it.  A number is an exponential average; the mean of all (Polyak &
  Juditsky 1992) is `lambda t: (t + 1) / (t + 2)`.

  Args:
    optimizer: of this library, not yet averaged.
    decay: rho, in (0, 1]; see `revmom.sgd` for the kinds of hyperparameters.

  Raises:
    ValueError: decay outside (0, 1].

  >>> import jax.numpy as jnp, revmom
  >>> optimizer = revmom.averaged(
  ...   revmom.sgd(1.0, 1.0), lambda t: (t + 1) / (t + 2)
  ... )
  >>> state = optimizer.init(jnp.zeros(1), num_steps=3)
  >>> for _ in range(3):  # to -1, -3, -6
  ...   state = optimizer.forward(state, jnp.ones_like)
  >>> print(optimizer.average_params(state))
  [-3.3333333]
  """
  check_factor("decay", decay)
  if AVERAGE in optimizer.roles:
    raise ValueError(
      "the optimizer keeps an average already; average it once, with one decay."
    )
  if isinstance(optimizer, Partition):
    optimizers = {
      label: averaged(own, decay) for label, own in optimizer.optimizers.items()
    }
    return optimizer.replace(optimizers=optimizers)
  bits = dict(optimizer.fraction_bits)[PARAMS]
  return optimizer.replace(
    average=wrap(decay),
    fraction_bits=(*optimizer.fraction_bits, (AVERAGE, bits)),
    floors=(*optimizer.floors, (AVERAGE, floor(decay))),
    fine=(*optimizer.fine, AVERAGE),
  )
