"""Gradients on grids, from which others near them are restored."""

from typing import Any

import jax

from revmom.exact import residue
from revmom.exact.residue import Residues
from revmom.optimizers.packing import Packing


def digits_of(packing: Packing, dtypes: tuple) -> tuple[int, ...]:
  """That gradients of leaves are rounded to, from the parameters' types."""
  return tuple(
    min(residue.digits_of(dtypes[i]) for i in group.members)
    for group in packing.groups
  )


def rounded(
  gradients: list, bits: int, digits: tuple
) -> tuple[list, list[Residues]]:
  """Gradients that another computation restores, if residues are kept."""
  if not bits:
    return gradients, []
  pairs = [
    residue.keep(gradient, bits, own)
    for gradient, own in zip(gradients, digits, strict=True)
  ]
  return [rounded for rounded, _ in pairs], [kept for _, kept in pairs]


def restored(
  gradients: list, residues: list, row: Any, bits: int, digits: tuple
) -> list:
  """What `rounded` gave at a step, from gradients that are close to it."""
  if not bits:
    return gradients
  return [
    residue.restore(gradient, jax.tree.map(lambda a: a[row], kept), bits, own)
    for gradient, kept, own in zip(gradients, residues, digits, strict=True)
  ]
