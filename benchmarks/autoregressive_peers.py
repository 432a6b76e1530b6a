"""A PixelCNN in PyTorch and convolutions in Flax, of the benchmark's sizes.

PyTorch has a process of its own, since the threads of two libraries in one
process slow both down; it computes only when it is asked to.
"""

import multiprocessing
import time
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np


class Convolutions(nn.Module):
  """Convolutions with relu between them; the last one is 1 x 1."""

  kernel_sizes: Sequence[int]
  features: int
  outputs: int
  masked: bool  # multiply kernels by masks A and B

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for number, size in enumerate(self.kernel_sizes):
      shape = (size, size, x.shape[-1], self.features)
      mask = _mask(shape, first=number == 0) if self.masked else None
      x = nn.relu(nn.Conv(self.features, (size, size), mask=mask)(x))
    return nn.Conv(self.outputs, (1, 1))(x)


def _mask(shape: tuple[int, ...], first: bool) -> np.ndarray:
  """Of one channel: what is above, and what is on the left."""
  mask = np.ones(shape, np.float32)
  centre = shape[0] // 2
  mask[centre + 1 :] = 0
  mask[centre, centre + (not first) :] = 0
  return mask


class TorchPixelCNN:
  """PyTorch with given weights: the whole network for every pixel.

  Attributes:
    outputs: of given images, to be compared.
  """

  def __init__(
    self,
    layers: Sequence[tuple[np.ndarray, np.ndarray]],
    images: np.ndarray,
    threads: int,
  ):
    """Kernels are masked [(k + 1) / 2, k, D, G]; images floats [B, H, W, 1]."""
    context = multiprocessing.get_context("spawn")
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(
      target=_worker, args=(theirs, layers, images, threads), daemon=True
    )
    self._process.start()
    self.outputs = self._pipe.recv()  # [B, H, W]

  def seconds(self) -> float:
    """Of one batch of samples, as many and as large as the images."""
    self._pipe.send(True)
    return self._pipe.recv()

  def close(self) -> None:
    """Ends the process."""
    self._pipe.send(False)
    self._process.join()


def _worker(
  pipe: Any,
  layers: Sequence[tuple[np.ndarray, np.ndarray]],
  images: np.ndarray,
  threads: int,
) -> None:
  import torch

  torch.set_num_threads(threads)
  weights = []
  for kernel, bias in layers:
    below = kernel.shape[1] - len(kernel)
    kernel = np.pad(kernel, [(0, below), (0, 0), (0, 0), (0, 0)])
    kernel = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
    weights.append((torch.from_numpy(kernel), torch.from_numpy(bias)))

  def network(x):
    *hidden, last = weights
    for kernel, bias in hidden:
      x = torch.nn.functional.conv2d(x, kernel, bias, padding="same").relu()
    return torch.nn.functional.conv2d(x, *last)[:, 0]

  def sample():
    batch, height, width, _ = images.shape
    x = torch.zeros(batch, 1, height, width)
    for i in range(height):
      for j in range(width):
        probability = torch.sigmoid(network(x)[:, i, j])
        x[:, 0, i, j] = 2 * torch.bernoulli(probability) - 1
    return x

  with torch.no_grad():
    given = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    pipe.send(network(given).numpy())
    while pipe.recv():
      begin = time.perf_counter()
      sample()
      pipe.send(time.perf_counter() - begin)
