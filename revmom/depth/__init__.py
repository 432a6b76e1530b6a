"""Reversible layers and recurrences, restored bit for bit."""

from revmom.depth.layer import Updates
from revmom.depth.members import (
  Signs,
  asynchronous_leapfrog,
  bdia,
  bdia_signs,
  leapfrog,
  momentum,
  revnet,
)
from revmom.depth.scan import reversible_scan

__all__ = [
  "Signs",
  "Updates",
  "asynchronous_leapfrog",
  "bdia",
  "bdia_signs",
  "leapfrog",
  "momentum",
  "reversible_scan",
  "revnet",
]
