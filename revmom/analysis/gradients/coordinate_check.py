"""Whether activations keep their size as networks get wider.

In a parametrisation such as muP (Yang & Hu 2021; Yang et al. 2022) activations
and their changes by training are of the order of 1 at any width, so that
learning rates found on narrow networks hold for wide ones.  The check trains
networks of several widths for a few steps and fits the power of the width that
the size of each layer's coordinates follows.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from revmom.analysis.gradients import norms
from revmom.optimizers.as_optax import ReversibleTransformation, as_optax
from revmom.optimizers.reversible import ReversibleOptimizer


class Problem(NamedTuple):
  """A network of some width, and its training.

  Attributes:
    init: key -> params.
    apply: (params, batch) -> a dict of the activations to measure, by the name
      of the layer.
    loss: (params, batch) -> scalar.
    optimizer: of optax, or a reversible one, which snaps params to its grid.
  """

  init: Callable[[jax.Array], Any]
  apply: Callable[[Any, Any], dict[str, jax.Array]]
  loss: Callable[[Any, Any], jax.Array]
  optimizer: optax.GradientTransformation | ReversibleOptimizer


class Exponents(NamedTuple):
  """Fitted powers of the width: size ~ width^exponent.

  Arrays [T + 1, layers]: after so many steps, in the order of `names`.
  """

  value: np.ndarray
  stderr: np.ndarray  # over seeds


class CoordinateCheck(NamedTuple):
  """Mean sizes of coordinates, [widths, seeds, T + 1, layers].

  The second axis but one is the number of steps done: 0 is initialisation.
  """

  names: tuple[str, ...]
  widths: tuple[int, ...]
  l1: np.ndarray  # mean |h|
  rms: np.ndarray  # sqrt(mean h^2)
  change: np.ndarray  # sqrt(mean (h - h at initialisation)^2)

  def exponents(self, of: str = "rms") -> Exponents:
    """Least-squares slopes of log size over log width.

    A slope is fitted for every seed; the value is their mean, and its standard
    error comes from their spread, so it says how far other seeds might be, not
    how well the sizes follow a power.

    Args:
      of: "l1", "rms" or "change", which is NaN before the first step.

    Raises:
      ValueError: if `of` is something else.
    """
    if of not in ("l1", "rms", "change"):
      raise ValueError(f"of={of!r}; choose l1, rms or change.")
    with np.errstate(divide="ignore", invalid="ignore"):
      sizes = np.log(np.asarray(getattr(self, of), np.float64))
      logs = np.log(self.widths)
      centred = logs - logs.mean()
      slopes = np.einsum("w,wstl->stl", centred, sizes) / (centred @ centred)
    count = len(slopes)
    return Exponents(slopes.mean(0), slopes.std(0, ddof=1) / count**0.5)

  def __str__(self) -> str:
    rms, change = self.exponents(), self.exponents("change")
    cell = lambda e, l: f"{e.value[-1, l]:+.2f} ± {e.stderr[-1, l]:.2f}"
    lines = [
      f"{'layer':16}{'rms':>16}{'change':>16}   powers of the width after "
      f"{self.rms.shape[2] - 1} steps",
      *(
        f"{name:16}{cell(rms, l):>16}{cell(change, l):>16}"
        for l, name in enumerate(self.names)
      ),
    ]
    return "\n".join(lines)


def coordinate_check(
  problem_of: Callable[[int], Problem],
  widths: Sequence[int],
  batches: Any,
  key: jax.Array,
  *,
  num_seeds: int = 4,
) -> CoordinateCheck:
  """Sizes of activations over widths, seeds and steps of training.

  Args:
    problem_of: width -> `Problem`.
    widths: two or more.
    batches: a pytree with a leading axis of T steps; activations are measured
      on the first batch, before and after each step.
    key: of the seeds, which are the same for all widths.
    num_seeds: networks of each width, 2 or more.

  Returns:
    `CoordinateCheck`; `print` shows a table.

  Raises:
    ValueError: if there are too few widths, seeds or steps, or layers have
      different names at different widths.
    FloatingPointError: a size is not finite; the message names the layer.

  >>> def problem_of(width):
  ...   apply = lambda w, x: {"sum": x @ w}
  ...   loss = lambda w, x: jnp.mean(apply(w, x)["sum"] ** 2)
  ...   init = lambda key: jax.random.normal(key, (3, width))
  ...   return Problem(init, apply, loss, optax.sgd(0.1))
  >>> batches = jnp.ones((1, 4, 3))
  >>> check = coordinate_check(
  ...   problem_of, [64, 256], batches, jax.random.key(0)
  ... )
  >>> check.names, check.rms.shape  # widths, seeds, 1 + steps, layers
  (('sum',), (2, 4, 2, 1))
  """
  steps = {len(leaf) for leaf in jax.tree.leaves(batches)}
  if len(set(widths)) < 2 or num_seeds < 2 or len(steps) != 1 or 0 in steps:
    raise ValueError(
      f"got widths {list(widths)}, num_seeds={num_seeds} and leading axes "
      f"{sorted(steps)} of batches; expected two different widths or more, two "
      "seeds or more, and one number of steps."
    )
  keys = jax.random.split(key, num_seeds)
  names: list[tuple[str, ...]] = []
  sizes = []
  for width in widths:
    problem = problem_of(width)
    probe = jax.tree.map(lambda leaf: leaf[0], batches)
    names.append(tuple(problem.apply(problem.init(keys[0]), probe)))
    sizes.append(np.asarray(_sizes(problem, batches, probe, keys)))
  if len(set(names)) > 1:
    raise ValueError(
      "layers have other names at other widths: "
      f"{dict(zip(widths, names, strict=True))}."
    )
  check = CoordinateCheck(names[0], tuple(widths), *np.stack(sizes, 1))
  _check_finite(check)
  return check


def _sizes(
  problem: Problem, batches: Any, probe: Any, keys: jax.Array
) -> jax.Array:
  """l1, rms and change, [3, seeds, T + 1, layers]."""
  optimizer = problem.optimizer
  if isinstance(optimizer, ReversibleOptimizer):
    steps = len(jax.tree.leaves(batches)[0])
    optimizer = as_optax(optimizer, num_steps=steps)

  def train(key: jax.Array) -> jax.Array:
    params = problem.init(key)
    state = optimizer.init(params)
    if isinstance(optimizer, ReversibleTransformation):
      params = optimizer.params(state)  # on its grid
    initial = problem.apply(params, probe)

    def measure(params: Any) -> jax.Array:
      now = problem.apply(params, probe)
      return jnp.stack([_measures(now[n], initial[n]) for n in initial], -1)

    def step(carry: Any, batch: Any) -> Any:
      params, state = carry
      gradients = jax.grad(problem.loss)(params, batch)
      updates, state = optimizer.update(gradients, state, params)
      params = optax.apply_updates(params, updates)
      return (params, state), measure(params)

    carry = params, state
    _, later = lax.scan(step, carry, batches)
    return jnp.concatenate([measure(params)[None], later])

  return jnp.moveaxis(jax.vmap(train)(keys), -2, 0)


def _measures(now: jax.Array, before: jax.Array) -> jax.Array:
  def rms(h: jax.Array) -> jax.Array:
    unit, factor = norms.scaled(h.reshape(-1))
    return jnp.sqrt(jnp.mean(unit * unit)) * factor[0]

  return jnp.stack([jnp.mean(jnp.abs(now)), rms(now), rms(now - before)])


def _check_finite(check: CoordinateCheck) -> None:
  bad = np.argwhere(~np.isfinite(check.rms))
  if len(bad):
    width, seed, step, layer = bad[bad[:, 2].argmin()]
    raise FloatingPointError(
      f"the activations of {check.names[layer]} at width "
      f"{check.widths[width]} are not finite after {step} steps (seed {seed}); "
      "lower the learning rate."
    )
