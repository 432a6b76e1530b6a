"""The functions that every cell has, made of its equations."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, reshard

from revmom.cells.sequences import masks, sweep
from revmom.cells.sequences.drive import driven
from revmom.cells.sequences.equations import Equations
from revmom.cells.sequences.residuals import Options, Residuals
from revmom.cells.sequences.sweep_adjoint import Gradients, backward
from revmom.numerics import accumulator, broadcasting, total


@dataclasses.dataclass(frozen=True)
class Cell:
  """A cell: `init`, `step`, `forward`, `backward` and `apply`.

  `params` is the NamedTuple that `init` returns; a structural option that is
  off has None in it. A carry is an array [B, H], or a NamedTuple of such, with
  the output of the cell first; it is float32 if the parameters are shorter.

  Attributes:
    name: for errors.
    init: (key, input_size, hidden_size, ...) -> params.
    equations: derived by hand.
    has_candidate: whether dropout has something to act on.
  """

  name: str
  init: Callable[..., Any]
  equations: Equations
  has_candidate: bool = True

  @broadcasting
  def step(self, params: Any, carry: Any, inputs: jax.Array) -> tuple[Any, Any]:
    """One step without masks, in the order of `lax.scan`.

    Args:
      params: from `init`.
      carry: the state before.
      inputs: [B, D].

    Returns:
      The state after, and the output [B, H].

    Raises:
      ValueError: if the carry does not fit.
    """
    self._check_carry(params, carry, inputs.shape[:-1])
    drive = driven(self.equations, params, inputs)
    new, _ = self.equations.advance(params, drive, carry, 1.0)
    return new, jax.tree.leaves(new)[0].astype(inputs.dtype)

  def initial_carry(self, params: Any, batch: int) -> Any:
    """The learned carry for a batch, or zeros."""
    dtype = accumulator(params.input_weights.dtype)
    if params.initial_carry is None:
      return jax.tree.map(
        lambda size: jnp.zeros((batch, size), dtype),
        self.equations.sizes(params),
      )
    return jax.tree.map(
      lambda learned: jnp.broadcast_to(
        learned.astype(dtype), (batch, *learned.shape)
      ),
      params.initial_carry,
    )

  def forward(
    self,
    params: Any,
    xs: jax.Array,
    initial_carry: Any = None,
    *,
    lengths: jax.Array | None = None,
    reverse: bool = False,
    batch_major: bool = False,
    zoneout: float | tuple[float, ...] = 0.0,
    dropout: float = 0.0,
    key: jax.Array | None = None,
    recompute: bool = False,
  ) -> tuple[jax.Array, Any, Residuals]:
    """A sweep over sequences, and what its backward pass needs.

    Plain JAX, so this is what to differentiate in forward mode.

    Args:
      params: from `init`.
      xs: [T, B, D], of the type of the parameters.
      initial_carry: the state before the first step; None is the learned one,
        or zeros.
      lengths: int32 [B], the lengths of the sequences. Beyond them the carry
        stays, outputs are zero, and it does not matter what the inputs hold.
        Where they are traced, lengths beyond T count as T.
      reverse: from the last step of each sequence to the first; every output
        stays at the place of its input.
      batch_major: xs [B, T, D], outputs [B, T, H] instead.
      zoneout: probability that an element of the carry keeps its value; a
        tuple has one for each array of the carry (Krueger et al. 2017).
      dropout: probability that an element of the candidate is left out
        (Semeniuta, Severyn & Barth 2016, "without memory loss").
      key: of zoneout and dropout. None evaluates: zoneout by its mean, no
        dropout.
      recompute: the backward pass computes the gates again, block by block,
        instead of keeping them.

    Returns:
      outputs [T, B, H], the state after the last step, and residuals.

    Raises:
      ValueError: if shapes, types, lengths or rates do not fit.
    """
    options = self._options(params, zoneout, dropout, reverse, recompute)
    xs = swapped(xs, batch_major)
    carry = self._carry(params, xs, initial_carry, lengths)
    outputs, final, residuals = sweep.forward(
      self.equations, options, params, xs, carry, lengths, key
    )
    assert residuals is not None
    learned = initial_carry is None and params.initial_carry is not None
    residuals = residuals.replace(
      learned_carry=learned, batch_major=batch_major
    )
    return swapped(outputs, batch_major), final, residuals

  def backward(
    self,
    params: Any,
    residuals: Residuals,
    output_bars: jax.Array,
    carry_bar: Any = None,
    *,
    adjoints: bool = False,
  ) -> Gradients:
    """The adjoint of `forward`, derived by hand.

    Args:
      params: from `init`.
      residuals: from `forward`.
      output_bars: adjoints of the outputs, of their shape.
      carry_bar: adjoint of the final carry; None is zero.
      adjoints: whether those of all gates and states are wanted.

    Returns:
      The gradients of params, of the inputs and of the initial carry (even if
      it is the learned one, whose gradient is among those of params); and a
      NamedTuple of adjoints, time-major arrays [T, B, H], or None.
    """
    if carry_bar is None:
      carry_bar = jax.tree.map(jnp.zeros_like, residuals.initial_carry)
    batch_major = residuals.batch_major
    gradients = backward(
      self.equations,
      params,
      residuals,
      swapped(output_bars, batch_major),
      carry_bar,
      adjoints,
    )
    if residuals.learned_carry:
      learned_bar = jax.tree.map(
        lambda bar, learned: total(bar).astype(learned.dtype),
        gradients.initial_carry,
        params.initial_carry,
      )
      gradients = gradients._replace(
        params=gradients.params._replace(initial_carry=learned_bar)
      )
    return gradients._replace(inputs=swapped(gradients.inputs, batch_major))

  def apply(
    self,
    params: Any,
    xs: jax.Array,
    initial_carry: Any = None,
    *,
    lengths: jax.Array | None = None,
    reverse: bool = False,
    batch_major: bool = False,
    zoneout: float | tuple[float, ...] = 0.0,
    dropout: float = 0.0,
    key: jax.Array | None = None,
    recompute: bool = False,
  ) -> tuple[jax.Array, Any]:
    """A sweep that differentiates by `backward`, and else keeps nothing.

    Its arguments are those of `forward`. Reverse mode, forward over reverse and
    reverse over reverse pass; forward mode alone needs `forward`.

    Returns:
      outputs [T, B, H], and the state after the last step.

    Raises:
      ValueError: if shapes, types, lengths or rates do not fit.
    """
    options = self._options(params, zoneout, dropout, reverse, recompute)
    xs = swapped(xs, batch_major)
    carry = self._carry(params, xs, initial_carry, lengths)
    outputs, final = sweep.differentiable(
      self.equations, options, params, xs, carry, lengths, key
    )
    return swapped(outputs, batch_major), final

  def _options(
    self,
    params: Any,
    zoneout: float | tuple[float, ...],
    dropout: float,
    reverse: bool,
    recompute: bool,
  ) -> Options:
    arrays = len(jax.tree.leaves(self.equations.sizes(params)))
    rates = masks.rates(zoneout, dropout, arrays)
    if rates.dropout and not self.has_candidate:
      raise ValueError(
        f"dropout={dropout} leaves out parts of a candidate, and the "
        f"{self.name} cell has none: what it drops is lost. Use zoneout, or "
        "drop parts of its inputs or outputs."
      )
    return Options(rates, reverse, recompute)

  def _carry(
    self, params: Any, xs: jax.Array, carry: Any, lengths: jax.Array | None
  ) -> Any:
    """The initial carry, when everything that goes into a sweep fits."""
    weights = params.input_weights
    if xs.ndim != 3 or xs.shape[2] != weights.shape[0]:
      raise ValueError(
        f"{self.name}: inputs have the shape {xs.shape}, but must be "
        f"[T, B, {weights.shape[0]}] for these parameters, time before batch: "
        "set batch_major for [B, T, D]; give a single sequence a batch axis."
      )
    if xs.dtype != weights.dtype:
      raise ValueError(
        f"{self.name}: inputs are {xs.dtype} and parameters {weights.dtype}: "
        "cast one to the type of the other."
      )
    steps, batch, _ = xs.shape
    masks.check_lengths(lengths, steps, batch)
    if carry is None:
      return _sharded_like(xs, self.initial_carry(params, batch))
    self._check_carry(params, carry, (batch,))
    dtype = accumulator(weights.dtype)
    carry = jax.tree.map(lambda array: jnp.asarray(array, dtype), carry)
    return _sharded_like(xs, carry)

  def _check_carry(
    self, params: Any, carry: Any, batch: tuple[int, ...]
  ) -> None:
    sizes = self.equations.sizes(params)
    expected = jax.tree.map(lambda size: (*batch, size), sizes)
    shapes = jax.tree.map(jnp.shape, carry)
    kind: Any = jax.tree.structure(sizes)
    if kind != jax.tree.structure(carry):
      raise ValueError(
        f"{self.name}: the carry is a {type(carry).__name__} of the shapes "
        f"{shapes}, but must be {expected}: give its arrays by these names, as "
        "libraries differ in their order."
      )
    if shapes != expected:
      raise ValueError(
        f"{self.name}: the carry has the shapes {shapes}, but must have "
        f"{expected}, without an axis of layers or directions."
      )


def _sharded_like(xs: jax.Array, carry: Any) -> Any:
  """The carry with the sharding of the batch, on meshes with explicit axes."""
  sharding = jax.typeof(xs).sharding
  batch = sharding.spec[1]
  if batch is None:
    return carry
  sharding = NamedSharding(sharding.mesh, PartitionSpec(batch, None))
  return jax.tree.map(lambda array: reshard(array, sharding), carry)


def swapped(array: jax.Array, batch_major: bool) -> jax.Array:
  """Swaps time and batch if the user has the batch first."""
  return jnp.swapaxes(array, 0, 1) if batch_major and array.ndim > 1 else array
