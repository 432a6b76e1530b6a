"""Square blocks of a Jacobian, and how to compute their determinants.

All that a block holds is known while tracing; values come with the
environment, which has those of all variables of the program.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.jacobian.estimates.stochastic import stochastic_log_det
from revmom.jacobian.log_determinants.components import Blocks, Decomposition
from revmom.jacobian.log_determinants.cuts import size
from revmom.jacobian.log_determinants.determinant import (
  Determinant,
  exact,
  of_matrices,
  product,
  wide,
)
from revmom.jacobian.log_determinants.log_slopes import LOG_SLOPES
from revmom.jacobian.program.equations import (
  Environment,
  Equation,
  Operand,
  Variable,
  evaluate,
  read,
)

# The most numbers that a batch of JVPs holds at a time.
BATCH = 2**24


class BlockReport(NamedTuple):
  """What was found in a segment of the program."""

  segment: int
  # "diagonal", "permutation", "sparse", "full", "dense" where nothing is known,
  # "estimate", "singular", "declared", or the name of the primitive that has a
  # rule of its own.
  kind: str
  blocks: int  # the number of diagonal blocks
  largest: int  # the size of the largest


class Block(Protocol):
  """A factor of det J."""

  @property
  def part(self) -> "Part":
    """The submatrix that it is the determinant of."""

  def evaluate(self, environment: Environment) -> Determinant:
    """The factor at the values of the environment."""

  def summary(self) -> tuple[str, int, int]:
    """Its kind, the number of diagonal blocks and the size of the largest."""


class Part(NamedTuple):
  """A square submatrix of a segment's Jacobian."""

  equations: Sequence[Equation]
  columns: Sequence[Variable]
  rows: Sequence[Operand]

  @property
  def size(self) -> int:
    return size(self.columns)

  @property
  def dtype(self) -> np.dtype:
    return wide(v.dtype for v in self.columns)

  @property
  def reads(self) -> set[Variable]:
    """The variables whose values it needs."""
    made = {v for equation in self.equations for v in equation.outputs}
    used = {v for equation in self.equations for v in equation.variables}
    rows = {v for v in self.rows if isinstance(v, Variable)}
    return used.union(self.columns, rows) - made

  def function(self, environment: Environment) -> Callable[..., list[Any]]:
    """The rows as a function of the columns, all else being constant."""
    constants = {v: environment[v] for v in self.reads}

    def rows(*columns: Any) -> list[Any]:
      values = {**constants, **dict(zip(self.columns, columns, strict=True))}
      evaluate(self.equations, values)
      return [read(values, operand) for operand in self.rows]

    return rows

  def pushforward(
    self, environment: Environment
  ) -> Callable[[Sequence[Any]], list[Any]]:
    """The JVP: tangents of the columns to tangents of the rows."""
    function = self.function(environment)
    values = [environment[v] for v in self.columns]
    return lambda tangents: jax.jvp(function, values, list(tangents))[1]


class Diagonal(NamedTuple):
  """Every row array is an elementwise function of every column array.

  The arrays are all of one size, so that there is one k x k matrix per
  element, k being the number of arrays.
  """

  part: Part

  def summary(self) -> tuple[str, int, int]:
    count = len(self.part.columns)
    return "diagonal", self.part.size // count, count

  def evaluate(self, environment: Environment) -> Determinant:
    if len(self.part.equations) == 1 and len(self.part.columns) == 1:
      log_slope = LOG_SLOPES.get(self.part.equations[0].name)
      if log_slope is not None:
        x = environment[self.part.columns[0]].astype(self.part.dtype)
        return exact(jnp.sum(log_slope(x)), 1.0, self.part.dtype)
    push = self.part.pushforward(environment)
    columns = []
    for varied in self.part.columns:
      seeds = [
        jnp.full(v.shape, float(v is varied), v.dtype)
        for v in self.part.columns
      ]
      # A constant would be carried through the whole segment by the compiler.
      seeds = lax.optimization_barrier(seeds)
      slopes = [jnp.ravel(s).astype(self.part.dtype) for s in push(seeds)]
      columns.append(jnp.stack(slopes, axis=-1))
    return of_matrices(jnp.stack(columns, axis=-1))  # [elements, k, k]


class Sparse(NamedTuple):
  """Diagonal blocks after a permutation, by JVPs that columns share."""

  part: Part
  decomposition: Decomposition
  kind: str

  def summary(self) -> tuple[str, int, int]:
    groups = self.decomposition.groups
    blocks = sum(len(group.rows) for group in groups)
    return self.kind, blocks, max(group.rows.shape[1] for group in groups)

  def evaluate(self, environment: Environment) -> Determinant:
    slopes = self._slopes(environment)  # [colours, n]
    factors = [
      of_matrices(_blocks(slopes, group, self.decomposition.colours))
      for group in self.decomposition.groups
    ]
    return product(factors, self.decomposition.sign, self.part.dtype)

  def _slopes(self, environment: Environment) -> jax.Array:
    """The sums of columns of one colour."""
    push = self.part.pushforward(environment)
    bounds = np.cumsum([v.size for v in self.part.columns])[:-1].tolist()
    colours = jnp.asarray(self.decomposition.colours)

    def along(colour: jax.Array) -> jax.Array:
      pieces = jnp.split(colours == colour, bounds)
      seeds = [
        piece.reshape(v.shape).astype(v.dtype)
        for piece, v in zip(pieces, self.part.columns, strict=True)
      ]
      rows = [jnp.ravel(row).astype(self.part.dtype) for row in push(seeds)]
      return jnp.concatenate(rows)

    number = jnp.arange(self.decomposition.colours.max() + 1)
    number = lax.optimization_barrier(number)
    batch = max(1, BATCH // self.part.size)
    if number.size <= batch:
      return jax.vmap(along)(number)
    return lax.map(along, number, batch_size=batch)


def _blocks(slopes: jax.Array, group: Blocks, colours: np.ndarray) -> jax.Array:
  """The matrices [blocks, size, size] of a group."""
  taken = slopes[colours[group.columns][:, None, :], group.rows[:, :, None]]
  if group.pattern.all():
    return taken
  return jnp.where(group.pattern, taken, jnp.zeros_like(taken))


class Estimated(NamedTuple):
  """A block too large for a dense matrix: log|det|, and no sign."""

  part: Part
  key: jax.Array
  num_samples: int

  def summary(self) -> tuple[str, int, int]:
    return "estimate", 1, self.part.size

  def after(self, before: Determinant, number: int) -> "Estimated":
    """The block with a random key of its own, which waits for another block.

    Independent batches of eigenvalue problems in one program may wait for each
    other for ever on a CPU with few cores.
    """
    wait = jnp.isnan(before.value).astype(jnp.uint32)
    key = jax.random.fold_in(self.key, np.uint32(2 * number) + wait)
    return self._replace(key=key)

  def evaluate(self, environment: Environment) -> Determinant:
    values = tuple(environment[v] for v in self.part.columns)
    estimate = stochastic_log_det(
      self.part.function(environment),
      values,
      self.key,
      num_samples=self.num_samples,
    )
    return Determinant(
      value=estimate.value,
      sign=jnp.full_like(estimate.value, jnp.nan),
      stderr=estimate.stderr,
      bias_bound=estimate.bias_bound,
    )


class Singular(NamedTuple):
  """A block that is singular at every point."""

  part: Part

  def summary(self) -> tuple[str, int, int]:
    return "singular", 1, self.part.size

  def evaluate(self, environment: Environment) -> Determinant:
    return exact(-jnp.inf, 0.0, self.part.dtype)


class Plan(NamedTuple):
  """How the determinant of a program is computed, decided while tracing."""

  blocks: tuple[tuple[int, Block], ...]  # with the numbers of their segments
  sign: int
  dtype: Any

  @property
  def reads(self) -> set[Variable]:
    """The variables whose values it needs."""
    return {v for _, block in self.blocks for v in block.part.reads}

  def evaluate(self, environment: Environment) -> Determinant:
    """The determinant at the values of the variables that it reads."""
    factors, last = [], None
    for number, (_, block) in enumerate(self.blocks):
      if isinstance(block, Estimated):
        block = block if last is None else block.after(last, number)
        last = block.evaluate(environment)
        factors.append(last)
      else:
        factors.append(block.evaluate(environment))
    return product(factors, self.sign, self.dtype)

  def report(self) -> tuple[BlockReport, ...]:
    """What was found."""
    return tuple(
      BlockReport(segment, *block.summary()) for segment, block in self.blocks
    )
