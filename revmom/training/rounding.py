"""Gradients on grids, from which others near them are restored."""

from typing import Any

import jax

from revmom.exact import residue
from revmom.exact.residue import Residues
from revmom.training.problem import Problem


def rounded(problem: Problem, gradients: list) -> tuple[list, list[Residues]]:
  """Gradients that another computation restores, if residues are kept."""
  if not problem.residue_bits:
    return gradients, []
  pairs = [
    residue.keep(gradient, problem.residue_bits, digits)
    for gradient, digits in zip(gradients, problem.digits, strict=True)
  ]
  return [rounded for rounded, _ in pairs], [kept for _, kept in pairs]


def restored(problem: Problem, gradients: list, residues: list, t: Any) -> list:
  """What `rounded` gave at a step, from gradients that are close to it."""
  if not problem.residue_bits:
    return gradients
  return [
    residue.restore(
      gradient,
      jax.tree.map(lambda a: a[t], kept),
      problem.residue_bits,
      digits,
    )
    for gradient, kept, digits in zip(
      gradients, residues, problem.digits, strict=True
    )
  ]
