"""What a run leaves, so that it can be undone or go on."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from revmom.exact import bit_buffer
from revmom.exact.pytree import static
from revmom.exact.residue import Bits
from revmom.optimizers.checks import check_factors, check_slots
from revmom.optimizers.dynamics import Dynamics
from revmom.optimizers.spills import Spills
from revmom.optimizers.state import State
from revmom.steps.leaf import Leaf
from revmom.training import run as runs
from revmom.training.environment import Fingerprint, check_environment
from revmom.training.plans import Plan
from revmom.training.rounding import joined_tables


class RunState(State):
  """The state at the end of a run, with all that its reversal needs."""

  checksums: jax.Array  # uint32 [1 + ceil(steps / checksum_every), 2]
  kept: list[Any]  # checkpoints or words of the plan's leading segments
  residues: list[Any]  # of what steps consumed, if they were asked for
  # [steps], of schedules and the like, beside them
  tables: dict[str, jax.Array]
  model_states: list[Any]  # before each step
  zero: jax.Array  # float []: 0, with the tangents that integers can't have
  plan: Plan = static()
  checksum_every: int = static()
  residue_bits: Bits = static()
  fingerprint: Fingerprint = static()

  @property
  def witness(self) -> Any:
    """Whatever differentiates the run differentiates this."""
    return self.zero


def check(state: RunState, dynamics: Dynamics, model_state: list) -> None:
  """Raises ValueError unless a run can be undone, or go on, like this."""
  check_environment(state.fingerprint, bool(state.residue_bits))
  check_slots(dynamics, state.leaves)
  check_factors(dynamics, state.schedules)
  kept = [(leaf.shape[1:], leaf.dtype) for leaf in state.model_states]
  given = [(leaf.shape, leaf.dtype) for leaf in model_state]
  if state.steps and kept != given:
    raise ValueError(
      f"the run kept a model_state of {_listed(kept)}, but was now given "
      f"{_listed(given)}; pass model_state=run.model_state, as it came back "
      "from revmom.train."
    )


def _listed(kinds: list[tuple]) -> str:
  arrays = [f"{dtype}{list(shape)}" for shape, dtype in kinds]
  return ", ".join(arrays) or "no arrays"


def joined(past: RunState, own: RunState, spills: Spills) -> RunState:
  """The state of a run that went on.

  Args:
    past: where it went on from.
    own: what the steps after that left; its count and schedules are those of
      all steps.
    spills: of all steps.
  """
  if not own.plan.steps:
    return past
  last, leaves, kept = past.plan.last, own.leaves, own.kept
  if last and own.plan.segments:
    words = jax.tree.map(lambda a: a[None], runs.words_of(past.leaves))
    kept = [words, *kept]
  elif last:
    rows = spills.rows(last + own.plan.steps)
    leaves = [
      _with_words_of(old, new, n, spills, group, past.steps, last)
      for old, new, n, group in zip(
        past.leaves, leaves, rows, spills.groups, strict=True
      )
    ]
  whole = 1 + past.steps // past.checksum_every
  after = lambda old, new: [
    jax.tree.map(lambda *both: jnp.concatenate(both), *pair)
    for pair in zip(old, new, strict=True)
  ]
  model_states, residues = own.model_states, own.residues
  if past.steps:
    model_states = after(past.model_states, model_states)
    residues = after(past.residues, residues)
  return own.replace(
    leaves=leaves,
    checksums=jnp.concatenate([past.checksums[:whole], own.checksums[1:]]),
    kept=[*past.kept, *kept],
    residues=residues,
    tables=joined_tables(past.tables, own.tables, past.steps, own.steps),
    model_states=model_states,
    plan=past.plan.then(own.plan),
  )


def _with_words_of(
  old: Leaf,
  new: Leaf,
  rows: dict[str, int],
  spills: Spills,
  group: tuple[int, int],
  steps: int,
  last: int,
) -> Leaf:
  """A leaf with the words of `last` steps, after them those that it has."""
  part, column = group
  words: dict[str, Any] = {}
  for name, buffer in new.buffers.items():
    row = spills.schedules[part][name].row[:, column]
    first, second = old.buffers[name].words, buffer.words
    words[name] = None
    if not rows[name]:
      continue
    # All that there may be beyond is room.
    room = rows[name] + sum(len(w) for w in (first, second) if w is not None)
    own: Any = bit_buffer.empty_words(buffer.number, room)
    if first is not None:
      own = own.at[: len(first)].set(first)
    if second is not None:
      place = row[steps] - row[steps - last]
      own = lax.dynamic_update_slice_in_dim(own, second, place, 0)
    words[name] = own[: rows[name]]
  return new.with_words(words)


def shortened(
  state: RunState, steps: int, leaves: list, kept: list, spills: Spills
) -> RunState:
  """The state of the first steps of a run.

  Args:
    state: of the run.
    steps: how many.
    leaves: after them, with at least the words of `state.plan.first(steps)`.
    kept: of that plan.
    spills: of the run.
  """
  plan, every = state.plan.first(steps), state.checksum_every
  cut = lambda tree: jax.tree.map(lambda array: array[:steps], tree)
  checksums = state.checksums[: 1 + steps // every]
  if steps % every:
    last = runs.checksum(leaves)
    checksums = jnp.concatenate([checksums, last[None]])
  spills = spills.first(steps)
  first = steps - plan.last
  cleaned = []
  for leaf, rows, (part, column) in zip(
    leaves, spills.rows(plan.last), spills.groups, strict=True
  ):
    words = {}
    for name, buffer in leaf.buffers.items():
      # Where the next step, of which there is one, would put its word.
      row = state.schedules[part][name].row[:, column]
      used = row[steps] - row[first] if steps < state.steps else rows[name]
      words[name] = _first_rows(buffer, rows[name], used)
    cleaned.append(leaf.with_words(words))
  return state.replace(
    count=jnp.asarray(steps, jnp.int32),
    leaves=cleaned,
    schedules=spills.schedules,
    steps=steps,
    checksums=checksums,
    kept=kept,
    residues=cut(state.residues),
    tables=cut(state.tables),
    model_states=cut(state.model_states),
    plan=plan,
  )


def _first_rows(buffer: bit_buffer.BitBuffer, rows: int, used: Any) -> Any:
  """Words of which nothing is left beyond those in use."""
  if not rows:
    return None
  room = bit_buffer.empty_words(buffer.number, rows)
  assert room is not None
  if buffer.words is None:
    return room
  words = jnp.concatenate([buffer.words, room])[:rows]
  places = lax.broadcasted_iota(jnp.int32, words.shape, 0)
  return jnp.where(places < used, words, 0)
