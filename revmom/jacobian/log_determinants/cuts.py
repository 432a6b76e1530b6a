"""Cutting a program into maps whose Jacobians multiply.

Where exactly D live floats carry everything that comes later, the program is
a composition of two square maps, and det J a product.  Live floats can't be
fewer unless det J = 0, so the cuts are the minimum cuts of a network in which
a variable costs its size.  One maximum flow finds them all: the closed sets of
its residual graph (Picard & Queyranne 1980).  Adding the graph's strongly
connected components one by one gives a longest chain of cuts, whatever the
order in which the program was written.
"""

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, maximum_flow

from revmom.jacobian.program.dependence import dependent
from revmom.jacobian.program.equations import (
  Equation,
  Operand,
  Variable,
  needed,
)

# Outputs that are floats and constant wherever they are differentiable.
FLAT = {"ceil", "floor", "nextafter", "round", "sign", "stop_gradient"}

SOURCE, SINK = 0, 1


class Segment(NamedTuple):
  """A square map between two cuts: columns are consumed, rows produced.

  Variables that are live at both ends are neither: they are constants.
  """

  equations: tuple[Equation, ...]
  columns: tuple[Variable, ...]
  rows: tuple[Variable, ...]


class Chain(NamedTuple):
  """Segments whose Jacobians multiply to a program's."""

  segments: tuple[Segment, ...]
  sign: int  # of the order in which variables enter and leave the segments


def carries_derivative(equation: Equation, output: int) -> bool:
  """Whether an output varies smoothly with the operands."""
  dtype = equation.outputs[output].dtype
  return jnp.issubdtype(dtype, jnp.inexact) and equation.name not in FLAT


def size(variables: Iterable[Variable]) -> int:
  """The number of elements altogether."""
  return sum(v.size for v in variables)


def between(
  equations: Sequence[Equation],
  columns: Sequence[Variable],
  rows: Iterable[Operand],
) -> tuple[Equation, ...]:
  """The equations by which the rows vary with the columns."""
  carriers = dependent(equations, columns, carries_derivative)
  carrying = [e for e in equations if carriers.intersection(e.outputs)]
  return tuple(needed(carrying, rows))


def cut(
  equations: Sequence[Equation],
  columns: Sequence[Variable],
  rows: Sequence[Operand],
) -> Chain | None:
  """The longest chain of segments from the columns to the rows.

  Args:
    equations: in an order in which they can be evaluated.
    columns: variables that the equations read.
    rows: as many floats as the columns have.

  Returns:
    None where the Jacobian d rows / d columns is singular everywhere, because
    fewer floats than D carry what the rows depend on.
  """
  columns = [v for v in columns if v.size]
  rows = [v for v in rows if not isinstance(v, Variable) or v.size]
  carriers = dependent(equations, columns, carries_derivative)
  if len(set(rows)) < len(rows) or not carriers.issuperset(rows):
    return None
  used = needed(
    [e for e in equations if carriers.intersection(e.outputs)], rows
  )
  network = _network(used, columns, rows, carriers)
  groups = _minimum_cuts(network, size(columns))
  return None if groups is None else _chain(groups, network, columns, rows)


class Network(NamedTuple):
  """A flow network: nodes are source, sink, equations, variables."""

  equations: list[Equation]
  variables: list[Variable]
  producer: dict[Variable, int]  # the node that computes a variable
  capacity: csr_array

  def equation(self, node: int) -> Equation | None:
    k = node - 2
    return self.equations[k] if 0 <= k < len(self.equations) else None

  def variable(self, node: int) -> Variable | None:
    k = node - 2 - len(self.equations)
    return self.variables[k] if k >= 0 else None


def _network(
  equations: list[Equation],
  columns: Sequence[Variable],
  rows: Sequence[Variable],
  carriers: set[Variable],
) -> Network:
  """A network in which the price of a cut is its number of live floats.

  On the sink's side of a cut are the equations that compute the rows from the
  variables that were cut.  What those depend on without varying with the
  consumed ones, such as a gradient, may be computed again: it isn't live.
  """
  producer = dict.fromkeys(columns, SOURCE)
  for k, equation in enumerate(equations):
    producer.update((v, 2 + k) for v in equation.outputs if v in carriers)
  reads = [
    (2 + k, v)
    for k, equation in enumerate(equations)
    for v in dict.fromkeys(equation.variables)
    if v in carriers
  ]
  variables = list(dict.fromkeys([*columns, *(v for _, v in reads), *rows]))
  node = {v: 2 + len(equations) + k for k, v in enumerate(variables)}
  never = size(columns) + 1
  edges = {(node[v], SINK): never for v in rows}
  for v in variables:
    # Half of a complex number is no coordinate: no cut goes through one.
    real = not jnp.issubdtype(v.dtype, jnp.complexfloating)
    edges[producer[v], node[v]] = v.size if real else never
  edges.update(((node[v], reader), never) for reader, v in reads)
  nodes = 2 + len(equations) + len(variables)
  return Network(equations, variables, producer, _matrix(edges, nodes))


def _matrix(edges: dict[tuple[int, int], int], nodes: int) -> csr_array:
  heads, tails = np.array(list(edges), np.int32).reshape(-1, 2).T
  largest = max(edges.values(), default=0)
  if largest > np.iinfo(np.int32).max:
    raise ValueError(
      f"the function has {largest - 1} floats, more than the 2^31 - 2 that a "
      "log-determinant is computed for; split it into functions of fewer."
    )
  prices = np.fromiter(edges.values(), np.int32, len(edges))
  return csr_array(coo_array((prices, (heads, tails)), shape=(nodes, nodes)))


def _minimum_cuts(network: Network, price: int) -> list[list[int]] | None:
  """Groups of nodes: after each, what came so far is a minimum cut."""
  capacity = network.capacity
  flow = maximum_flow(capacity, SOURCE, SINK)
  if flow.flow_value < price:
    return None
  residual = capacity.astype(np.int64) - flow.flow.astype(np.int64)
  heads, tails = (residual > 0).nonzero()
  shape = capacity.shape
  open_edges = csr_array((np.ones(len(heads)), (heads, tails)), shape=shape)
  count, label = connected_components(open_edges, connection="strong")
  members: list[list[int]] = [[] for _ in range(count)]
  for vertex, group in enumerate(label):
    members[group].append(vertex)
  edges = set(zip(label[heads].tolist(), label[tails].tolist(), strict=True))
  order = _closed_order(count, edges, [min(group) for group in members])
  last = order.index(int(label[SINK]))
  return [members[group] for group in order[:last]]


def _closed_order(
  count: int, edges: set[tuple[int, int]], priority: list[int]
) -> list[int]:
  """Orders groups so that each comes after all that it has edges to."""
  waiting = [0] * count
  before: list[list[int]] = [[] for _ in range(count)]
  for head, tail in edges:
    if head != tail:
      waiting[head] += 1
      before[tail].append(head)
  ready = [(priority[k], k) for k in range(count) if not waiting[k]]
  heapq.heapify(ready)
  order = []
  while ready:
    _, group = heapq.heappop(ready)
    order.append(group)
    for head in before[group]:
      waiting[head] -= 1
      if not waiting[head]:
        heapq.heappush(ready, (priority[head], head))
  return order


def _chain(
  groups: list[list[int]],
  network: Network,
  columns: Sequence[Variable],
  rows: Sequence[Variable],
) -> Chain:
  """The segments between minimum cuts, and the sign of their order."""
  live = list(columns)
  segments, sign = [], 1
  fresh = set(network.variables)
  for group in groups:
    equations = [e for node in group if (e := network.equation(node))]
    done = {v for node in group if (v := network.variable(node))}
    fresh -= done
    made = [v for e in equations for v in e.outputs if v in fresh]
    consumed = [v for v in live if v in done]
    if consumed:
      kept = [v for v in live if v not in done]
      sign *= arrangement_sign(live, [*kept, *consumed])
      live = [*kept, *made]
      inner = between(equations, consumed, made)
      segments.append(Segment(inner, tuple(consumed), tuple(made)))
  return Chain(tuple(segments), sign * arrangement_sign(live, rows))


def arrangement_sign(
  variables: Sequence[Variable], arranged: Sequence[Variable]
) -> int:
  """The sign of the permutation of all elements when variables are moved."""
  # Moving an even number of elements past others is an even permutation.
  odd = [v for v in variables if v.size % 2]
  place = {v: k for k, v in enumerate(odd)}
  return permutation_sign(np.array([place[v] for v in arranged if v in place]))


def permutation_sign(permutation: np.ndarray) -> int:
  """+1 or -1, by the number of cycles.

  >>> permutation_sign(np.array([1, 0, 2]))
  -1
  """
  count = len(permutation)
  if not count:
    return 1
  graph = coo_array(
    (np.ones(count), (np.arange(count), permutation)), shape=(count, count)
  )
  cycles = connected_components(graph, return_labels=False)
  return 1 if (count - cycles) % 2 == 0 else -1
