"""The finest block triangular form of a square pattern.

A permutation of the columns brings a nonzero to every place of the diagonal
(a bipartite matching); the strongly connected components of the graph of what
is then nonzero are the diagonal blocks of a block triangular matrix (Dulmage &
Mendelsohn 1958), and det J is the product of their determinants.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import (
  connected_components,
  maximum_bipartite_matching,
)

from revmom.jacobian.log_determinants.cuts import permutation_sign


class Blocks(NamedTuple):
  """Diagonal blocks of one size."""

  rows: np.ndarray  # [blocks, size]
  columns: np.ndarray  # [blocks, size]
  pattern: np.ndarray  # [blocks, size, size]: False where J is known to be 0


class Decomposition(NamedTuple):
  """det J = sign * the product of the determinants of J[rows, columns]."""

  groups: tuple[Blocks, ...]
  colours: np.ndarray  # [n]: columns of one colour share a JVP
  sign: int


class Components(NamedTuple):
  """Which rows and columns belong to which diagonal block."""

  partner: np.ndarray  # [n]: the column that is put on the diagonal of a row
  label: np.ndarray  # [n]: the block of a row

  @property
  def largest(self) -> int:
    """The size of the largest block."""
    return int(np.bincount(self.label).max())


def find_components(pattern: csr_array) -> Components | None:
  """The diagonal blocks of a pattern [n, n]; None if it is singular."""
  if pattern.diagonal().all():
    # A search would take quadratic time where the elements form a chain.
    partner = np.arange(pattern.shape[0])
  else:
    partner = maximum_bipartite_matching(pattern, perm_type="column")
  if (partner < 0).any():
    return None
  _, label = connected_components(pattern[:, partner], connection="strong")
  return Components(partner, label)


def decompose(pattern: csr_array, components: Components) -> Decomposition:
  """The diagonal blocks of a pattern, each of them dense."""
  partner, label = components
  return Decomposition(
    groups=_groups(pattern, partner, label),
    colours=_colours(pattern, partner, label),
    sign=permutation_sign(partner),
  )


def whole(n: int) -> Decomposition:
  """One block of size n, without any known zeros."""
  everything = np.arange(n)[None]
  block = Blocks(everything, everything, np.ones((1, n, n), bool))
  return Decomposition((block,), np.arange(n), 1)


def _groups(
  pattern: csr_array, partner: np.ndarray, label: np.ndarray
) -> tuple[Blocks, ...]:
  order = np.argsort(label, kind="stable")
  sizes = np.bincount(label)
  starts = np.cumsum(sizes) - sizes
  groups = []
  for size in np.unique(sizes):
    chosen = starts[sizes == size]
    rows = order[chosen[:, None] + np.arange(size)]
    columns = partner[rows]
    if size == 1:
      inside = np.ones((len(rows), 1, 1), bool)
    else:
      inside = _entries(pattern, rows, columns)
    groups.append(Blocks(rows, columns, inside))
  return tuple(groups)


def _entries(
  pattern: csr_array, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
  """pattern[rows[b, i], columns[b, j]] as [b, i, j]."""
  blocks, size = rows.shape
  block, place = np.empty((2, pattern.shape[0]), int)
  block[:], place[:] = -1, 0
  block[columns] = np.arange(blocks)[:, None]
  place[columns] = np.arange(size)
  found = pattern[rows.ravel()].tocoo()
  i, j = found.row, found.col
  same = block[j] == i // size
  inside = np.zeros((blocks, size, size), bool)
  i, j = i[same], j[same]
  inside[i // size, i % size, place[j]] = True
  return inside


def _colours(
  pattern: csr_array, partner: np.ndarray, label: np.ndarray
) -> np.ndarray:
  """Greedy colours of the columns.

  Two columns may share one unless a row of the block of either has nonzeros
  in both: what happens outside of the diagonal blocks does not matter.
  """
  n = pattern.shape[0]
  if pattern.nnz == n:
    return np.zeros(n, int)
  column_label = np.empty(n, label.dtype)
  column_label[partner] = label
  entries = pattern.tocoo()
  own = label[entries.row] == column_label[entries.col]
  inner = csr_array(
    (np.ones(own.sum(), bool), (entries.row[own], entries.col[own])),
    shape=(n, n),
  )
  clash = inner.T @ pattern
  return _greedy(csr_array(clash + clash.T))


def _greedy(clash: csr_array) -> np.ndarray:
  """Colours the nodes of a graph one by one."""
  n = clash.shape[0]
  colours = np.full(n, -1)
  starts, neighbours = clash.indptr, clash.indices
  for node in range(n):
    near = colours[neighbours[starts[node] : starts[node + 1]]]
    taken = np.zeros(len(near) + 1, bool)
    taken[near[(near >= 0) & (near <= len(near))]] = True
    colours[node] = np.argmin(taken)
  return colours
