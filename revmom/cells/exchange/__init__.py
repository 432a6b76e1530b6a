"""Weights from and for PyTorch and Flax, and layers of Flax NNX."""
