r"""Three memory cells for grids, and their adjoints.

All of them get pre-activations a from `mdlstm` and the memories
:math:`c_1, \dots, c_n` of the n neighbours (zero beyond the grid).  They have
n + 3 blocks of pre-activations each, and differ in how memories are merged.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.numerics import sigmoid

Arrays = tuple[jax.Array, ...]


class Equations(NamedTuple):
  """A cell, elementwise.

  Attributes:
    forward: (pre-activations, previous memories, peephole) -> (h, c, gates).
    adjoint: (h_bar, c_bar, c, gates, previous memories, peephole) -> the
      adjoints of the pre-activations, of the previous memories, and `Adjoints`;
      c_bar is what reaches c through the next cells.
  """

  forward: Callable[..., tuple[jax.Array, jax.Array, Any]]
  adjoint: Callable[..., tuple[Arrays, Arrays, "Adjoints"]]


class Adjoints(NamedTuple):
  """The adjoints at every position [S_1, ..., S_n, B, H], accumulated."""

  h: jax.Array  # of the hidden state, from all that it reaches
  c: jax.Array  # of the memory, likewise
  gates: Any  # of the gates' values, in the NamedTuple of the cell's gates


class GravesGates(NamedTuple):
  """Candidate, input and output gate, and a forget gate for each axis."""

  g: jax.Array
  i: jax.Array
  o: jax.Array
  f: Arrays


class StableGates(NamedTuple):
  """Candidate; input, output, forget gate; share of each axis' memory."""

  g: jax.Array
  i: jax.Array
  o: jax.Array
  f: jax.Array
  share: Arrays


class LeakyGates(NamedTuple):
  """Candidate; output gates of the new and the old memory; forget gate; shares.

  The input gate is 1 - f.
  """

  g: jax.Array
  o: jax.Array
  o_old: jax.Array
  f: jax.Array
  share: Arrays


def _dot(left: Sequence[jax.Array], right: Sequence[jax.Array]) -> jax.Array:
  terms = [l * r for l, r in zip(left, right, strict=True)]
  return sum(terms[1:], terms[0])


def _sigmoid_adjoint(gate: jax.Array, bar: jax.Array) -> jax.Array:
  return gate * (1 - gate) * bar


def _tanh_adjoint(value: jax.Array, bar: jax.Array) -> jax.Array:
  return (1 - value * value) * bar


def _graves(a: Arrays, previous: Arrays, peephole: Any) -> Any:
  a_g, a_i, a_o, *a_f = a
  if peephole is not None:
    p_i, p_o, *p_f = peephole
    a_i = a_i + p_i * sum(previous[1:], previous[0])
    a_f = [a + p * c for a, p, c in zip(a_f, p_f, previous, strict=True)]
  g, i = jnp.tanh(a_g), sigmoid(a_i)
  f = tuple(sigmoid(a) for a in a_f)
  c = i * g + _dot(f, previous)
  o = sigmoid(a_o if peephole is None else a_o + p_o * c)
  return o * jnp.tanh(c), c, GravesGates(g, i, o, f)


def _graves_adjoint(
  h_bar: jax.Array,
  c_bar: jax.Array,
  c: jax.Array,
  gates: GravesGates,
  previous: Arrays,
  peephole: Any,
) -> tuple[Arrays, Arrays, Adjoints]:
  g, i, o, f = gates
  t = jnp.tanh(c)
  o_bar = h_bar * t
  a_o = _sigmoid_adjoint(o, o_bar)
  c_bar = c_bar + _tanh_adjoint(t, h_bar * o)
  if peephole is not None:
    p_i, p_o, *p_f = peephole
    c_bar = c_bar + p_o * a_o
  g_bar, i_bar = c_bar * i, c_bar * g
  f_bar = tuple(c_bar * c_d for c_d in previous)
  a_g, a_i = _tanh_adjoint(g, g_bar), _sigmoid_adjoint(i, i_bar)
  a_f = tuple(map(_sigmoid_adjoint, f, f_bar))
  previous_bar = tuple(c_bar * f_d for f_d in f)
  if peephole is not None:
    previous_bar = tuple(
      bar + p_i * a_i + p * a
      for bar, p, a in zip(previous_bar, p_f, a_f, strict=True)
    )
  bars = GravesGates(g_bar, i_bar, o_bar, f_bar)
  return (a_g, a_i, a_o, *a_f), previous_bar, Adjoints(h_bar, c_bar, bars)


def _shares(a: Sequence[jax.Array], like: jax.Array) -> Arrays:
  """softmax(a_1, ..., a_{n-1}, 0): for two axes, sigma(a_1) and the rest."""
  if len(a) == 1:
    first = sigmoid(a[0])
    return first, 1 - first
  logits = jnp.stack([*a, jnp.zeros_like(like)])
  return tuple(jax.nn.softmax(logits, axis=0))


def _shares_adjoint(share: Arrays, bars: Arrays) -> Arrays:
  mean = _dot(share, bars)
  return tuple(
    s * (bar - mean) for s, bar in zip(share[:-1], bars[:-1], strict=True)
  )


def _stable(a: Arrays, previous: Arrays, peephole: None) -> Any:
  a_g, a_i, a_o, a_f, *a_share = a
  g = jnp.tanh(a_g)
  i, o, f = (sigmoid(a) for a in (a_i, a_o, a_f))
  share = _shares(a_share, g)
  c = i * g + f * _dot(share, previous)
  return o * jnp.tanh(c), c, StableGates(g, i, o, f, share)


def _stable_adjoint(
  h_bar: jax.Array,
  c_bar: jax.Array,
  c: jax.Array,
  gates: StableGates,
  previous: Arrays,
  peephole: None,
) -> tuple[Arrays, Arrays, Adjoints]:
  g, i, o, f, share = gates
  t, s = jnp.tanh(c), _dot(share, previous)
  o_bar = h_bar * t
  c_bar = c_bar + _tanh_adjoint(t, h_bar * o)
  g_bar, i_bar, f_bar, s_bar = c_bar * i, c_bar * g, c_bar * s, c_bar * f
  share_bar = tuple(s_bar * c_d for c_d in previous)
  bars = StableGates(g_bar, i_bar, o_bar, f_bar, share_bar)
  a_bars = (
    _tanh_adjoint(g, g_bar),
    _sigmoid_adjoint(i, i_bar),
    _sigmoid_adjoint(o, o_bar),
    _sigmoid_adjoint(f, f_bar),
    *_shares_adjoint(share, share_bar),
  )
  previous_bar = tuple(s_bar * w for w in share)
  return a_bars, previous_bar, Adjoints(h_bar, c_bar, bars)


def _leaky(a: Arrays, previous: Arrays, peephole: None) -> Any:
  a_g, a_o, a_old, a_f, *a_share = a
  g = jnp.tanh(a_g)
  o, o_old, f = (sigmoid(a) for a in (a_o, a_old, a_f))
  share = _shares(a_share, g)
  s = _dot(share, previous)
  c = (1 - f) * g + f * s
  return jnp.tanh(o * c + o_old * s), c, LeakyGates(g, o, o_old, f, share)


def _leaky_adjoint(
  h_bar: jax.Array,
  c_bar: jax.Array,
  c: jax.Array,
  gates: LeakyGates,
  previous: Arrays,
  peephole: None,
) -> tuple[Arrays, Arrays, Adjoints]:
  g, o, o_old, f, share = gates
  s = _dot(share, previous)
  m_bar = _tanh_adjoint(jnp.tanh(o * c + o_old * s), h_bar)
  o_bar, old_bar = m_bar * c, m_bar * s
  c_bar = c_bar + m_bar * o
  g_bar, f_bar = c_bar * (1 - f), c_bar * (s - g)
  s_bar = c_bar * f + m_bar * o_old
  share_bar = tuple(s_bar * c_d for c_d in previous)
  bars = LeakyGates(g_bar, o_bar, old_bar, f_bar, share_bar)
  a_bars = (
    _tanh_adjoint(g, g_bar),
    _sigmoid_adjoint(o, o_bar),
    _sigmoid_adjoint(o_old, old_bar),
    _sigmoid_adjoint(f, f_bar),
    *_shares_adjoint(share, share_bar),
  )
  previous_bar = tuple(s_bar * w for w in share)
  return a_bars, previous_bar, Adjoints(h_bar, c_bar, bars)


GRAVES = Equations(_graves, _graves_adjoint)
STABLE = Equations(_stable, _stable_adjoint)
LEAKY = Equations(_leaky, _leaky_adjoint)
