"""Densities as products of conditionals, and their causal networks."""
