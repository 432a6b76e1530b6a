"""Depth and time: chains of units, recurrences, memory cells (D1-D3, B2)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from revmom.analysis import (
  chain_bound,
  layer_spectra,
  recurrence_bound,
  recurrent_flow,
)
from revmom.cells import elman, lstm
from trainable.row import (
  BOUND,
  MEASUREMENT,
  PREDICTION,
  WIDE,
  Panel,
  Result,
  Row,
)

_LOG10 = math.log(10)


def chain_of_units(nonlinearity: str, starts: tuple[float, ...]) -> Result:
  """D1 and D2: 200 units with weights of one."""
  system = {"sigmoid": "D1", "tanh": "D2"}[nonlinearity]
  phi = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh}[nonlinearity]
  weights = jnp.ones((200, 1, 1))
  depths = np.arange(1, 201)

  @jax.jit
  def slopes(x):
    spectra = layer_spectra(lambda w, x: phi(w @ x), weights, x[None])
    return spectra.products.log_largest.value / _LOG10

  bound = np.asarray(chain_bound(weights, nonlinearity)) / _LOG10
  measured = {x: np.asarray(slopes(jnp.float32(x))) for x in starts}
  curves: dict[str, Any] = {
    f"measured, x = {x:g}": (depths, values - bound, "-")
    for x, values in measured.items()
  }
  worst = max(measured.values(), key=lambda values: values[-1])
  holds = all((v <= bound + 1e-3).all() for v in measured.values())
  what = f"|df/dx| of 200 {nonlinearity} units, the largest of {len(starts)} x"
  ends = float(bound[-1]), float(worst[-1])
  return [Row(system, what, BOUND, *ends, holds, log=True)], Panel(
    f"{system}: a chain of {nonlinearity} units",
    "units n",
    "log10 of |df/dx| over its bound",
    curves
    | {f"bound, {'4^-n' if system == 'D1' else 1}": (depths, 0 * bound, "k--")},
  )


def recurrence(key: jax.Array, gain: float) -> Result:
  """D3: x_{t+1} = tanh(W x_t), 50 steps of 64 units, s_max(W) = gain."""
  keys = jax.random.split(key, 2)
  weights = jax.random.normal(keys[0], (64, 64))
  weights = gain * weights / jnp.linalg.norm(weights, 2)
  spectra = jax.jit(
    lambda w, x: layer_spectra(
      lambda w, x: jnp.tanh(w @ x), jnp.broadcast_to(w, (49, 64, 64)), x
    )
  )(weights, 0.1 * jax.random.normal(keys[1], (64,)))
  steps = np.arange(2, 51)
  bound = np.asarray(recurrence_bound(weights, 50))[1:] / _LOG10
  composed = np.asarray(spectra.log_largest_bound) / _LOG10
  largest = np.asarray(spectra.products.log_largest.value) / _LOG10
  mean = np.asarray(spectra.products.log_mean_square.value) / (2 * _LOG10)
  holds = bool((largest <= composed + 1e-3).all())
  holds = holds and bool((composed <= bound + 1e-3).all())
  what = f"s_max(dx_50/dx_1) of tanh(W x), s_max(W) = {gain:g}"
  return [
    Row(
      "D3", what, BOUND, float(bound[-1]), float(largest[-1]), holds, log=True
    ),
    Row(
      "D3",
      "the same, composed of each step's own Jacobian",
      BOUND,
      float(composed[-1]),
      float(largest[-1]),
      holds,
      log=True,
    ),
  ], Panel(
    "D3: a recurrence",
    "step n",
    "log10 of singular values of dx_n/dx_1",
    {
      "bound, composed of steps": (steps, composed, WIDE),
      "bound s^(n-1)": (steps, bound, "k--"),
      "measured, largest": (steps, largest, "-"),
      "measured, root mean square": (steps, mean, "-"),
    },
  )


def memory_cells(key: jax.Array, steps: int = 1000) -> Result:
  """B2: adjoints of an LSTM whose gates hold, and of a plain network."""
  keys = jax.random.split(key, 3)
  size = 32
  xs = jax.random.normal(keys[0], (steps, 4, 8))
  holding = lstm.init(keys[1], 8, size)._replace(
    bias=jnp.repeat(jnp.array([-12.0, 12.0, -12.0, 0.0]), size)
  )
  plain = elman.init(keys[2], 8, size)

  def last_memory(cell, params, xs):
    """From a random adjoint of the last state."""
    _, carry, residuals = cell.forward(params, xs)
    bars = jax.tree.map(lambda c: jnp.ones_like(c) / c.size**0.5, carry)
    zeros = jnp.zeros((steps, 4, size))
    found = cell.backward(params, residuals, zeros, bars, adjoints=True)
    return jax.tree.map(
      lambda a: jnp.linalg.norm(a, axis=(1, 2)), found.adjoints
    )

  gated = jax.jit(lambda p, x: last_memory(lstm, p, x))(holding, xs)
  usual = jax.jit(lambda p, x: recurrent_flow(elman, p, x))(plain, xs)
  at = np.arange(1, steps + 1)
  # What is too small for float32 is left out of the figure.
  log = lambda values: np.log10(np.where(values > 0, values, np.nan))
  hidden = np.asarray(usual.adjoint("hidden").norm)
  kept = float(gated.cell[0] / gated.cell[-1])
  return [
    Row(
      "B2",
      f"|c_bar| of the first over the last of {steps} steps, f = 1, i = o = 0",
      PREDICTION,
      1.0,
      kept,
      abs(kept - 1) < 0.02,
    ),
    Row(
      "B2",
      "its largest |h_bar| before the last step, at most",
      BOUND,
      1.0,
      float(gated.hidden[:-1].max()),
      bool(gated.hidden[:-1].max() < 1),
    ),
    Row(
      "B2",
      "|h_bar| of a plain network, 100 steps before the last over the last",
      MEASUREMENT,
      None,
      float(log(hidden[-101] / hidden[-1])),
      None,
      log=True,
    ),
  ], Panel(
    f"B2: adjoints over {steps} steps",
    "step",
    "log10 of the adjoint's norm",
    {
      "LSTM that holds, c_bar": (at, log(np.asarray(gated.cell)), "-"),
      "LSTM that holds, h_bar": (at, log(np.asarray(gated.hidden)), "-"),
      "plain network, h_bar; before that, 0": (at, log(hidden), "-"),
    },
  )
