"""Cells on sequences: their equations, and sweeps over time."""
