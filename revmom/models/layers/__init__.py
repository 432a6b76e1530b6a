"""Layers that deep networks are stacked from."""
