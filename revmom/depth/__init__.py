"""Reversible layers and recurrences, restored bit for bit."""

from revmom.depth.layer import Updates
from revmom.depth.members import leapfrog, momentum, revnet
from revmom.depth.scan import reversible_scan

__all__ = ["Updates", "leapfrog", "momentum", "reversible_scan", "revnet"]
