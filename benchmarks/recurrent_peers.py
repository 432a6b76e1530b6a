"""Recurrent layers of other libraries, on the benchmark's sizes.

JAX's are pairs (function of params and inputs, params).  PyTorch has a process
of its own, since the threads of two libraries in one process slow both down;
it computes only when it is asked to.
"""

import functools
import importlib.util
import multiprocessing
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Size(NamedTuple):
  """Of a sequence problem."""

  batch: int
  time: int
  input: int
  hidden: int


class GridSize(NamedTuple):
  """Of a square grid."""

  side: int
  batch: int
  channels: int


def installed(package: str) -> bool:
  """Whether a peer can be measured here."""
  return importlib.util.find_spec(package) is not None


def flax_rnn(cell: str, size: Size, xs: jax.Array) -> tuple[Callable, Any]:
  """A cell of flax.linen in its `RNN`."""
  from flax import linen

  layer = linen.RNN(getattr(linen, cell)(size.hidden), time_major=True)
  return layer.apply, layer.init(jax.random.key(0), xs)


def haiku_lstm(size: Size, xs: jax.Array) -> tuple[Callable, Any]:
  """Haiku's LSTM, unrolled dynamically."""
  import haiku

  def run(xs):
    core = haiku.LSTM(size.hidden)
    return haiku.dynamic_unroll(core, xs, core.initial_state(size.batch))[0]

  layer = haiku.without_apply_rng(haiku.transform(run))
  return layer.apply, layer.init(jax.random.key(0), xs)


def equinox_cell(cell: str, size: Size, xs: jax.Array) -> tuple[Callable, Any]:
  """A cell of Equinox, vmapped and scanned as its documentation does."""
  import equinox

  del xs
  layer = getattr(equinox.nn, cell)(
    size.input, size.hidden, key=jax.random.key(0)
  )

  def run(layer, xs):
    zeros = jnp.zeros((size.batch, size.hidden))
    carry = (zeros, zeros) if cell == "LSTMCell" else zeros

    def step(carry, x):
      carry = jax.vmap(layer)(x, carry)
      return carry, carry[0] if cell == "LSTMCell" else carry

    return jax.lax.scan(step, carry, xs)[1]

  return run, layer


def cudnn_lstm(size: Size, xs: jax.Array) -> tuple[Callable, Any]:
  """cuDNN's, by `jax.experimental.rnn`; for GPUs only, and batch-major."""
  from jax.experimental import rnn

  del xs
  weights = rnn.init_lstm_weight(
    jax.random.key(0), size.input, size.hidden, 1, False
  )
  lengths = jnp.full((size.batch,), size.time, jnp.int32)
  zeros = jnp.zeros((1, size.batch, size.hidden))

  def run(weights, xs):
    outputs, *_ = rnn.lstm(
      jnp.swapaxes(xs, 0, 1),
      zeros,
      zeros,
      weights,
      lengths,
      size.input,
      size.hidden,
      1,
      0.0,
      False,
    )
    return jnp.swapaxes(outputs, 0, 1)

  return run, weights


def naive_grid(params: Any, xs: jax.Array) -> jax.Array:
  """An MDRNN as two nested scans, differentiated by JAX."""
  up, left = params.recurrent_weights
  zeros = jnp.zeros((*xs.shape[1:-1], up.shape[0]))

  def row(above, xs):
    def cell(before, now):
      x, above = now
      h = x @ params.input_weights + params.bias + above @ up + before @ left
      return jnp.tanh(h), jnp.tanh(h)

    hidden = jax.lax.scan(cell, zeros[0], (xs, above))[1]
    return hidden, hidden

  return jax.lax.scan(row, zeros, xs)[1]


class Torch:
  """PyTorch, in its own process: `seconds(repeats)` times one of its layers."""

  def __init__(self, kind: str, size: Any, backward: bool, threads: int):
    context = multiprocessing.get_context("spawn")
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(
      target=_torch_worker,
      args=(theirs, kind, size, backward, threads),
      daemon=True,
    )
    self._process.start()
    self._pipe.recv()  # it is ready

  def seconds(self, repeats: int) -> float:
    """Of one call, the mean over some."""
    self._pipe.send(repeats)
    return self._pipe.recv()

  def close(self) -> None:
    """Ends the process."""
    self._pipe.send(0)
    self._process.join()


def _torch_worker(
  pipe: Any, kind: str, size: Any, backward: bool, threads: int
) -> None:
  import torch

  torch.set_num_threads(threads)
  make = _torch_grid if kind == "grid" else functools.partial(_torch_rnn, kind)
  run = make(torch, size, backward)
  run()
  pipe.send("ready")
  while repeats := pipe.recv():
    begin = time.perf_counter()
    for _ in range(repeats):
      run()
    pipe.send((time.perf_counter() - begin) / repeats)


def _torch_rnn(
  kind: str, torch: Any, size: Size, backward: bool
) -> Callable[[], Any]:
  layer = getattr(torch.nn, kind)(size.input, size.hidden)
  xs = torch.randn(size.time, size.batch, size.input, requires_grad=backward)
  bars = torch.randn(size.time, size.batch, size.hidden)

  def run():
    if not backward:
      with torch.no_grad():
        return layer(xs)
    outputs = layer(xs)[0]
    return torch.autograd.grad(outputs, [xs, *layer.parameters()], bars)

  return run


def _torch_grid(
  torch: Any, size: GridSize, backward: bool
) -> Callable[[], Any]:
  """An MDRNN by anti-diagonals of exact length, in a Python loop."""
  side, channels = size.side, size.channels
  scale = channels**-0.5
  weights = [
    (torch.randn(channels, channels) * scale).requires_grad_(backward)
    for _ in range(3)
  ]
  xs = torch.randn(side, side, size.batch, channels, requires_grad=backward)
  bars = torch.randn(side, side, size.batch, channels)
  i, j = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
  order = torch.argsort((i + j).flatten(), stable=True)
  lengths = [min(k + 1, side, 2 * side - 1 - k) for k in range(2 * side - 1)]

  def run():
    inward, up, left = weights
    drive = (xs.reshape(side * side, size.batch, channels) @ inward)[order]
    edge = torch.zeros(1, size.batch, channels)
    before, diagonals = None, []
    for k, part in enumerate(torch.split(drive, lengths)):
      if before is not None:
        above = torch.cat([edge, before]) if k < side else before[:-1]
        beside = torch.cat([before, edge]) if k < side else before[1:]
        part = part + above @ up + beside @ left
      before = torch.tanh(part)
      diagonals.append(before)
    outputs = torch.cat(diagonals)
    if not backward:
      return outputs
    flat = bars.reshape(side * side, size.batch, channels)[order]
    return torch.autograd.grad(outputs, [xs, *weights], flat)

  return run
