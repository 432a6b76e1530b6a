"""Reversible layers and recurrences, restored bit for bit."""

from revmom.depth import revgru, revlstm
from revmom.depth.bits import bits_kept
from revmom.depth.gates import Gate
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
  "Gate",
  "Signs",
  "Updates",
  "asynchronous_leapfrog",
  "bdia",
  "bdia_signs",
  "bits_kept",
  "leapfrog",
  "momentum",
  "reversible_scan",
  "revgru",
  "revlstm",
  "revnet",
]
