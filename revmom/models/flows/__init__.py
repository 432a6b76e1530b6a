"""Normalising flows: bijections with a log-determinant."""
