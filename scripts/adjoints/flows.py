"""Adjoints of recurrent networks at every step, and what bounds them."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.cells import elman, lstm
from shared.settings import flag

_INPUT_SIZE = 8
_FACTOR = 20  # of what closed gates let through, from inputs and states


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  steps: int = flag(1000, "T, of the sequence.", at_least=2)
  hidden_size: int = flag(
    64, "Cells, or units of the plain networks.", at_least=1
  )
  batch_size: int = flag(16, "Random sequences to take means over.", at_least=1)
  gate_bias: tuple[float, ...] = flag(
    (5.0, 10.0, 20.0),
    "b of an LSTM with the biases b, -b and -b of f, i and o, so that f is "
    "near 1 and i and o are near 0; repeat the flag for several.",
    at_least=0.0,
    repeated=True,
  )
  radius: tuple[float, ...] = flag(
    (0.9, 1.0, 1.5, 2.0),
    "Spectral radius of a plain network's W; repeat the flag for several.",
    at_least=0.0,
    repeated=True,
  )
  seed: int = flag(0, "Of weights and inputs.")


class Flow(NamedTuple):
  """The adjoints of a network's states at every step.

  Norms are over units, and medians over sequences: [T].
  """

  name: str
  cell: np.ndarray | None
  hidden: np.ndarray
  largest_hidden: float  # |h_bar| of any unit, at any step but the last
  change: float | None  # the largest |c_bar_1 / c_bar_T - 1| of any cell


def norms(adjoints: jax.Array) -> np.ndarray:
  """Of adjoints [T, B, H]."""
  return np.median(np.linalg.norm(np.asarray(adjoints), axis=-1), axis=1)


def largest(adjoints: jax.Array) -> float:
  """The largest, before the last step, where it was put in."""
  return float(np.abs(adjoints[:-1]).max())


def seeds(key: jax.Array, config: Config) -> jax.Array:
  """Random adjoints [B, H] at the last step, of norm 1 each."""
  shape = config.batch_size, config.hidden_size
  draw = jax.random.normal(key, shape)
  return draw / jnp.linalg.norm(draw, axis=-1, keepdims=True)


@functools.partial(jax.jit, static_argnums=0)
def sweep(cell: Any, params: Any, xs: jax.Array, carry_bar: Any) -> Any:
  """Adjoints at every step, from those of the last state."""
  outputs, _, residuals = cell.forward(params, xs)
  zeros = jnp.zeros_like(outputs)
  gradients = cell.backward(params, residuals, zeros, carry_bar, adjoints=True)
  return gradients.adjoints


def lstm_flow(
  name: str, params: lstm.LSTMParams, xs: jax.Array, config: Config
) -> Flow:
  """Adjoints of an LSTM, from those of its last h and c."""

  keys = jax.random.split(jax.random.key(config.seed + 1))
  carry_bar = lstm.LSTMCarry(*(seeds(key, config) for key in keys))
  adjoints = sweep(lstm.cell, params, xs, carry_bar)
  return Flow(
    name,
    norms(adjoints.cell),
    norms(adjoints.hidden),
    largest(adjoints.hidden),
    float(np.abs(adjoints.cell[0] / adjoints.cell[-1] - 1).max()),
  )


def plain_flow(
  name: str, params: elman.ElmanParams, xs: jax.Array, config: Config
) -> Flow:
  """Adjoints of a plain recurrent network, from that of its last h."""

  carry_bar = seeds(jax.random.key(config.seed + 1), config)
  hidden = sweep(elman.cell, params, xs, carry_bar).hidden
  return Flow(name, None, norms(hidden), largest(hidden), None)


def holding(params: lstm.LSTMParams, bias: float) -> lstm.LSTMParams:
  """i and o near 0 and f near 1; the order of the gates is i, f, o, g."""
  size = params.recurrent_weights.shape[0]
  of_gates = jnp.repeat(jnp.array([-bias, bias, -bias, 0.0]), size)
  return params._replace(bias=of_gates)


def with_radius(params: elman.ElmanParams, radius: float) -> elman.ElmanParams:
  """Recurrent weights scaled to a spectral radius."""
  weights = params.recurrent_weights
  scale = np.abs(np.linalg.eigvals(np.asarray(weights))).max()
  return params._replace(recurrent_weights=weights * (radius / scale))


def measure(config: Config) -> dict[str, list[Flow]]:
  """All networks, on the same inputs, in 64 bits: adjoints get very small.

  Raises:
    FloatingPointError: adjoints were not finite.
  """
  with jax.enable_x64(True):
    keys = jax.random.split(jax.random.key(config.seed), 3)
    sizes = _INPUT_SIZE, config.hidden_size
    shape = config.steps, config.batch_size, _INPUT_SIZE
    xs = jax.random.normal(keys[0], shape)
    gated = lambda forget_bias: lstm.init(
      keys[1], *sizes, forget_bias=forget_bias, dtype=jnp.float64
    )
    plain = elman.init(keys[2], *sizes, dtype=jnp.float64)
    flows = {
      "holding": [
        lstm_flow(f"LSTM, biases of {b:g}", holding(gated(0.0), b), xs, config)
        for b in config.gate_bias
      ],
      "initial": [
        lstm_flow(f"LSTM as drawn, forget bias {b:g}", gated(b), xs, config)
        for b in (0.0, 1.0)
      ],
      "plain": [
        plain_flow(f"plain, radius {r:g}", with_radius(plain, r), xs, config)
        for r in config.radius
      ],
    }
  for flow in (flow for group in flows.values() for flow in group):
    if not np.isfinite([flow.hidden[0], flow.largest_hidden]).all():
      raise FloatingPointError(
        f"{flow.name}: adjoints exceed 64-bit floats in {config.steps} steps; "
        "lower --steps or --radius."
      )
  return flows


def rate(values: np.ndarray) -> float:
  """Nats by which adjoints grow in a step back; negative if they shrink."""
  with np.errstate(divide="ignore"):  # below all floats: -inf
    return float(np.log(values[0] / values[-1])) / (len(values) - 1)


def check(flows: dict[str, list[Flow]], config: Config) -> None:
  """The claim, for any number of steps.

  Raises:
    RuntimeError: it does not hold.
  """
  for bias, flow in zip(config.gate_bias, flows["holding"], strict=True):
    closed = 1 / (1 + math.exp(bias))  # i, o and 1 - f, without inputs
    assert flow.cell is not None
    if abs(rate(flow.cell)) > _FACTOR * closed:
      raise RuntimeError(
        f"{flow.name}: c_bar changes by {rate(flow.cell):.1e} nats a step, "
        f"but gates closed to {closed:.1e} should keep it."
      )
    if flow.largest_hidden > _FACTOR * closed:
      raise RuntimeError(
        f"{flow.name}: |h_bar| reaches {flow.largest_hidden:.1e}, but gates "
        f"closed to {closed:.1e} should bound it."
      )
  for radius, flow in zip(config.radius, flows["plain"], strict=True):
    if radius < 1 and rate(flow.hidden) > math.log(radius) + 0.01:
      raise RuntimeError(
        f"{flow.name}: h_bar changes by {rate(flow.hidden):.1e} nats a step, "
        "but should vanish."
      )
    if radius >= 2 and rate(flow.hidden) < 0.01:
      raise RuntimeError(
        f"{flow.name}: h_bar changes by {rate(flow.hidden):.1e} nats a step, "
        "but should explode; does it with a larger --hidden_size?"
      )
