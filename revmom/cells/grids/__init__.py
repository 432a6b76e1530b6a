"""Cells on grids of any number of dimensions: equations, and sweeps."""
