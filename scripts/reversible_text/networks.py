"""Language models on GRU and LSTM, and on their reversible kin."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom import depth
from revmom.cells import gru, lstm

REVERSIBLE = {"revgru": depth.revgru, "revlstm": depth.revlstm}
USUAL = {"gru": gru, "lstm": lstm}


class Params(NamedTuple):
  """Of a model."""

  embeddings: jax.Array  # [V, E]
  cell: Any
  readout: jax.Array  # [H, V]
  bias: jax.Array  # [V]


class Network(NamedTuple):
  """A cell, and how many bits it may forget a step."""

  cell: str
  limit: float | None = None  # None for cells that are not reversible

  @property
  def name(self) -> str:
    """In tables and in result.json."""
    if self.limit is None:
      return self.cell
    return f"{self.cell}_{self.limit:g}"

  @property
  def arrays(self) -> int:
    """Numbers in the state of a unit."""
    return 2 if self.cell.endswith("lstm") else 1

  def init(
    self, key: jax.Array, vocabulary: int, embedding: int, hidden: int
  ) -> Params:
    """Random weights."""
    keys = jax.random.split(key, 3)
    module = (REVERSIBLE | USUAL)[self.cell]
    normal = jax.random.normal
    return Params(
      normal(keys[0], (vocabulary, embedding)) * 0.1,
      module.init(keys[1], embedding, hidden),
      normal(keys[2], (hidden, vocabulary)) * hidden**-0.5,
      jnp.zeros(vocabulary),
    )

  def start(self, params: Params, batch: int) -> Any:
    """The state before a text."""
    if self.limit is None:
      return USUAL[self.cell].cell.initial_carry(params.cell, batch)
    return REVERSIBLE[self.cell].initial_carry(params.cell, batch)

  def losses(
    self, params: Params, window: tuple, carry: Any
  ) -> tuple[jax.Array, Any]:
    """-log P of the token after each one, and the last state.

    Args:
      params: of `init`.
      window: tokens and those that follow them, int32 [T, B] each.
      carry: the state before the first.

    Returns:
      Losses [T, B] in nats, and a state.
    """
    tokens, targets = window

    def loss(hidden: jax.Array, target: jax.Array) -> jax.Array:
      scores = hidden @ params.readout + params.bias
      found = jnp.take_along_axis(scores, target[:, None], 1)[:, 0]
      return jax.nn.logsumexp(scores, 1) - found

    if self.limit is None:
      apply = USUAL[self.cell].apply
      outputs, carry = apply(params.cell, params.embeddings[tokens], carry)
      return jax.vmap(loss)(outputs, targets), carry
    module = REVERSIBLE[self.cell]
    after, values = depth.reversible_scan(
      self.updates(params),
      carry,
      window,
      outputs=lambda layer, carry: loss(module.cell.hidden_of(carry), layer[1]),
    )
    return values, after

  def updates(self, params: Params) -> depth.Updates:
    """The equations of a step that reads a token and its successor."""
    assert self.limit is not None
    return REVERSIBLE[self.cell].updates(
      params.cell,
      depth.Gate(self.limit),
      inputs=lambda layer: params.embeddings[layer[0]],
    )

  def bits(self, params: Params, window: tuple) -> float:
    """Bits that are kept of a unit and step, from an empty state.

    For an LSTM that is of both numbers of a unit together.
    """
    steps, batch = window[0].shape
    carry = self.start(params, batch)

    @jax.jit
    def kept(params: Params) -> jax.Array:
      bits = depth.bits_kept(self.updates(params), carry, window)
      return jnp.sum(jnp.stack([own for own in bits if own is not None]))

    units = params.readout.shape[0]
    return float(kept(params)) / (steps * batch * units)


def temporary_bytes(
  network: Network, params: Params, batch: int, steps: int
) -> int:
  """Of the compiled gradient of a window."""
  tokens = jax.ShapeDtypeStruct((steps, batch), np.int32)

  def loss(params, window):
    carry = network.start(params, batch)
    return network.losses(params, window, carry)[0].mean()

  compiled = jax.jit(jax.grad(loss)).lower(params, (tokens, tokens)).compile()
  memory: Any = compiled.memory_analysis()
  return memory.temp_size_in_bytes


def growth(network: Network, params: Params, batch: int, steps: int) -> float:
  """Bytes that a gradient keeps of a step more."""
  sizes = [temporary_bytes(network, params, batch, n) for n in (1, steps)]
  return max(1.0, (sizes[1] - sizes[0]) / max(1, steps - 1))
