"""Proof that a run was reversed, or where it went wrong."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from revmom.exact import bit_buffer
from revmom.exact.residue import Margin
from revmom.exact.tracing import concrete
from revmom.optimizers.slot import PARAMS
from revmom.steps import note
from revmom.steps.checksum import checksum
from revmom.steps.leaf import Leaf, exact, is_tangent


class Receipt(NamedTuple):
  """What a reversal found when it came back to the first step.

  Of one that stopped on its way the first three are one: whether all integers
  were what they had been at the last checksum that it came to.
  """

  params_restored: jax.Array  # bool []: the initial integers, bit for bit
  slots_restored: jax.Array  # bool []: velocities are zero
  buffers_empty: jax.Array  # bool []: every stored bit was used
  in_range: jax.Array  # bool []: no value left its grid
  # int32 []: last checked step still wrong (the length of the run if the state
  # was not that which the run left), else -1.
  diverged_at: jax.Array
  margin: Margin | None = None  # of residues, if the run kept any

  @property
  def ok(self) -> jax.Array:
    """Whether the reversal was exact."""
    return (
      self.params_restored
      & self.slots_restored
      & self.buffers_empty
      & self.in_range
      & (self.diverged_at < 0)
    )

  @property
  def near_bound(self) -> jax.Array:
    """Whether residues hardly sufficed: a warning, if the rest is ok."""
    if self.margin is None:
      return jnp.zeros((), bool)
    return self.margin.is_narrow

  def describe(self) -> str:
    """What was found, in words; outside of `jit`."""
    said = "the reversal was exact: every bit is restored"
    if not bool(self.ok):
      said = "the reversal was NOT exact"
      if int(self.diverged_at) >= 0:
        said += f", first seen at step {int(self.diverged_at)}"
    if self.margin is None:
      return f"{said}."
    return f"{said}.  {self.margin.describe()}"

  def check(self, checksum_every: int, steps: int) -> None:
    """Raises RuntimeError unless the reversal was exact."""
    if not bool(self.ok):
      raise RuntimeError(message(self, checksum_every, steps))


def message(receipt: Receipt, checksum_every: int, steps: int) -> str:
  """What went wrong, and what to do."""
  if not bool(receipt.in_range):
    return (
      "a run can't be reversed, because a value left its grid on the way: it "
      "was NaN or too large, or a traced factor was below its floor.  "
      "`optimizer.check(run.state)` names the parameter array and the remedy."
    )
  step = int(receipt.diverged_at)
  if steps and step == steps:
    return (
      "a reversal was given other integers than the run left: its state was "
      "changed on the way.  Pass `run.state` as `train` returned it."
    )
  where = (
    f"between steps {step} and {min(step + checksum_every, steps)}"
    if step >= 0
    else "at the first step"
  )
  return (
    f"a reversal first diverged {where}: the gradient there was not "
    "recomputed bit for bit.  Initial parameters restored: "
    f"{bool(receipt.params_restored)}, velocities zero: "
    f"{bool(receipt.slots_restored)}, buffers empty: "
    f"{bool(receipt.buffers_empty)}.  First make sure that it was given the "
    "run's inputs: the same loss, optimizer, batches and further arguments.  "
    f"Then {_remedy(receipt)} "
    "scripts/doctor.py names what on this machine makes gradients "
    "irreproducible."
  )


def _remedy(receipt: Receipt) -> str:
  if receipt.margin is None:
    return (
      "reverse with the same batching, devices and threads as the run, or "
      "train with residue_bits=2, which forgives other rounding;"
    )
  return (
    "keep more residue_bits, which forgive more, or reverse in a way that "
    f"rounds more like the run.  {receipt.margin.describe()}"
  )


def of_start(leaves: list[Leaf], checksums: jax.Array, steps: int) -> jax.Array:
  """`diverged_at` of a reversal: `steps` if the run left other integers."""
  damaged = jnp.any(checksum(leaves) != checksums[-1])
  return jnp.where(damaged, jnp.int32(steps), jnp.int32(-1))


def of_reversal(
  back: Any, final: list[Leaf], checksums: jax.Array, initial: Any = None
) -> Receipt:
  """The receipt of a reverse pass.

  Args:
    back: what it came back with: `leaves` and `diverged_at`.
    final: the leaves that it started from.
    checksums: of the run.
    initial: the leaves that the run started from, if they are known; their
      checksum is compared in any case.
  """
  every = lambda flags: jnp.all(jnp.stack([jnp.ones((), bool), *flags]))
  restored = [jnp.all(checksum(back.leaves) == checksums[0])]
  slots, empty = [], []
  for i, leaf in enumerate(back.leaves):
    first = None if initial is None else initial[i].integers
    if first is not None:
      restored.append(jnp.all(leaf.integers[PARAMS] == first[PARAMS]))
    for name, z in leaf.integers.items():
      if name != PARAMS:
        start = jnp.zeros_like(z) if first is None else first[name]
        slots.append(jnp.all(_apart(z, start) <= _allowed(name, z.dtype)))
    for name in exact(leaf.buffers):
      number = leaf.buffers[name].number
      empty.append(
        bit_buffer.is_empty(leaf.integers[name], leaf.buffers[name])
        if initial is None
        else jnp.all(number == initial[i].buffers[name].number)
      )
  return Receipt(
    params_restored=every(restored),
    slots_restored=every(slots),
    buffers_empty=every(empty),
    in_range=every([~jnp.any(leaf.overflowed) for leaf in final]),
    diverged_at=back.diverged_at,
    margin=back.margin,
  )


def _apart(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.maximum(a, b) - jnp.minimum(a, b)


def _allowed(role: str, integer: Any) -> int:
  """How far a role may be from what it was: tangents, by some last bits.

  They are computed again as closely as a compiler likes.  Their largest fills
  all but three bits of an integer, and an error of one is not passed on.
  """
  bits = jnp.iinfo(integer).bits
  return 2 ** (bits - 3 - 18) if is_tangent(role) else 0


def of_part(restored: jax.Array, back: Any, final: list[Leaf]) -> Receipt:
  """The receipt of a reversal that stopped on the way.

  Args:
    restored: whether all integers there are what they were.
    back: what it came back with.
    final: the leaves that it started from.
  """
  in_range = [~jnp.any(leaf.overflowed) for leaf in final]
  return Receipt(
    params_restored=restored,
    slots_restored=restored,
    buffers_empty=restored,
    in_range=jnp.all(jnp.stack([jnp.ones((), bool), *in_range])),
    diverged_at=back.diverged_at,
    margin=back.margin,
  )


def not_a_number(receipt: Receipt) -> jax.Array:
  """A float32 NaN that says what went wrong, for `explain`."""
  return note.noted(note.STEPS, receipt.diverged_at, receipt.in_range)


def explain(gradients: Any) -> str | None:
  """Why gradients are not numbers; None if they don't say.

  A reverse pass of `revmom.train` that failed gives NaN whose spare bits hold
  the step, and one of `revmom.depth.reversible_scan` the layer.  They survive
  further arithmetic on a CPU; narrower types than float32 and most
  accelerators drop them: ask `revmom.rewind` for a receipt there.

  Args:
    gradients: a pytree of what `jax.grad` gave, outside of `jit`.

  >>> explain({"learning_rate": jnp.ones(3)}) is None
  True
  """
  for mark, reason in (note.STEPS, _of_steps), (note.LAYERS, _of_layers):
    for leaf in jax.tree.leaves(gradients):
      values = concrete(leaf)
      number = None if values is None else note.read(values, mark)
      if number is not None:
        return reason(number)
  return None


def _of_steps(number: int) -> str:
  if number == note.LEFT_GRID:
    return (
      "a value left its grid on the way: it was NaN or too large, or a traced "
      "factor was below its floor.  `optimizer.check(run.state)` names the "
      "parameter array and the remedy."
    )
  where = f"after step {number - 1}" if number else "at the first step"
  return (
    f"the reversal diverged {where}: the gradient there was not recomputed bit "
    "for bit.  Train with residue_bits=2, which forgives other rounding; "
    "scripts/doctor.py names what on this machine makes gradients "
    "irreproducible."
  )


def _of_layers(number: int) -> str:
  if number == note.LEFT_GRID:
    return (
      "a value of reversible_scan left its grid on the way: it was NaN or too "
      "large, a traced factor was below its floor, or a gate was out of its "
      "range.  Give fewer fraction_bits, lower floors, or gates that "
      "`Gate.limit` made."
    )
  if number == note.FULL:
    return (
      "gates of reversible_scan forgot more bits than their budget has room "
      "for.  Give a larger one: `revmom.depth.bits_kept` says how much it "
      "takes, and with None there is always room."
    )
  return (
    f"reversible_scan diverged between layers {number - 1} and "
    f"{number - 1 + note.EVERY}, counted from 0: an increment there was not "
    "recomputed bit for bit.  Make sure that the functions of a layer depend "
    "on their arguments alone; scripts/doctor.py names what on this machine "
    "makes results irreproducible."
  )


def report(receipt: Receipt, checksum_every: int, steps: int) -> None:
  """Logs an error if a reversal failed, outside of `jit`."""
  if concrete(receipt.ok) is not None and not receipt.ok:
    logging.error("revmom: %s", message(receipt, checksum_every, steps))
