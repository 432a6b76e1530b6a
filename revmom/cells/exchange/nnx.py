"""The cells as layers of Flax NNX, and how to use them in Linen.

A layer of NNX is replaced in one line, with the same order of arguments, the
same calls and the same outputs for the same weights (`conversion` has them):

    rnn = nnx.RNN(nnx.OptimizedLSTMCell(3, 5, rngs=rngs))
    rnn = LSTM(3, 5, rngs=rngs)

`nnx.Bidirectional` takes two of them.  What differs from `nnx.RNN`:

- Outputs beyond `seq_lengths` are zero, and padding gets no gradients.
- A sequence of length 0 returns its initial carry.
- It is no cell to be wrapped by `nnx.RNN`, but a layer of its own.
- There are no activations, initializers or `unroll` to choose.  Weights start
  as `init` of the cell says; an LSTM's forget gate has a bias of 1.
- Carries are float32 where the parameters are shorter.
- `rngs` of a call are for zoneout and dropout, not for the carry.

In Linen no layer is needed.  Three lines, the parameter, the sweep and what
uses it, are a model:

>>> from flax import linen
>>> class Classifier(linen.Module):
...   @linen.compact
...   def __call__(self, xs):
...     params = self.param("lstm", lambda key: lstm.init(key, xs.shape[-1], 5))
...     outputs, carry = lstm.apply(params, xs)
...     return linen.Dense(10)(outputs[-1])
>>> xs = jnp.ones((7, 2, 3))  # [T, B, D]
>>> variables = Classifier().init(jax.random.key(0), xs)
>>> variables["params"]["lstm"].input_weights.shape
(3, 20)
>>> Classifier().apply(variables, xs).shape
(2, 10)
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from revmom.cells.exchange.nnx_grid import MDLSTM, MDRNN
from revmom.cells.exchange.nnx_weights import Weighted, check_options
from revmom.cells.sequences import elman, gated_input, gru, lstm, ugrnn
from revmom.cells.sequences.cell import Cell

__all__ = ["GRU", "LSTM", "MDLSTM", "MDRNN", "UGRNN", "Elman", "GatedInput"]

Rngs = nnx.Rngs | nnx.RngStream | jax.Array


class Recurrent(Weighted):
  """A layer of one cell; `LSTM` and the others say which."""

  cell: ClassVar[Cell]

  def __init__(
    self,
    in_features: int,
    hidden_features: int,
    *,
    rngs: nnx.Rngs,
    time_major: bool = False,
    return_carry: bool = False,
    reverse: bool = False,
    keep_order: bool = False,
    zoneout: float | tuple[float, ...] = 0.0,
    dropout: float = 0.0,
    deterministic: bool = False,
    recompute: bool = False,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    **options: Any,
  ):
    """Draws the weights.

    Args:
      in_features, hidden_features: D and H.
      rngs: of the weights ("params"); of zoneout and dropout ("dropout"), which
        the layer draws from in every call.
      time_major, return_carry, reverse, keep_order: defaults of the calls.
      zoneout, dropout: as for `apply` of the cell.
      deterministic: no randomness: zoneout by its mean, no dropout. `eval()`
        and `train()` set it.
      recompute: as for `apply` of the cell.
      dtype: to cast inputs and parameters to; None is as they are, which must
        be the same.
      param_dtype: of the parameters.
      **options: of `init` of the cell.

    Raises:
      ValueError: if a size or an option does not exist.
    """
    check_options(type(self).__name__, self.cell.init, options)
    self.in_features = in_features
    self.hidden_features = hidden_features
    self.time_major = time_major
    self.return_carry = return_carry
    self.reverse = reverse
    self.keep_order = keep_order
    self.zoneout = zoneout
    self.dropout = dropout
    self.deterministic = deterministic
    self.recompute = recompute
    self.dtype = dtype
    random = any(jax.tree.leaves((zoneout, dropout)))
    self.rngs = rngs["dropout"].fork() if random else nnx.data(None)
    params = self.cell.init(
      rngs.params(), in_features, hidden_features, dtype=param_dtype, **options
    )
    self._hold(params)

  def __call__(
    self,
    inputs: jax.Array,
    *,
    initial_carry: Any = None,
    seq_lengths: jax.Array | None = None,
    return_carry: bool | None = None,
    time_major: bool | None = None,
    reverse: bool | None = None,
    keep_order: bool | None = None,
    deterministic: bool | None = None,
    rngs: Rngs | None = None,
  ) -> Any:
    """A sweep, as `nnx.RNN` does it; None is what the constructor said.

    Args:
      inputs: [..., T, D], or [T, ..., D] if time_major.
      initial_carry: [..., H]; of an LSTM (c, h). None is the learned one, or
        zeros.
      seq_lengths: integers [...].
      return_carry: whether to return (carry, outputs).
      time_major: whether time is the first axis.
      reverse: from the end of each sequence to its start.
      keep_order: of a reverse sweep, leave each output at the place of its
        input; else the first output is that of the last input.
      deterministic: see the constructor.
      rngs: of zoneout and dropout, instead of the constructor's.

    Returns:
      [..., T, H], or (carry, outputs).

    Raises:
      ValueError: if shapes, types, lengths or rates do not fit.
    """
    time_major = _given(time_major, self.time_major)
    reverse = _given(reverse, self.reverse)
    time = 0 if time_major else inputs.ndim - 2
    steps, batch = inputs.shape[time], _without(inputs.shape[:-1], time)
    lengths = seq_lengths
    if lengths is not None:
      lengths = jnp.broadcast_to(lengths, batch).reshape(-1)
    xs = jnp.moveaxis(self._cast(inputs), time, 0)
    outputs, carry = self.cell.apply(
      self.weights(),
      xs.reshape(steps, _size(batch), *inputs.shape[-1:]),
      self._flat_carry(initial_carry, batch),
      lengths=lengths,
      reverse=reverse,
      zoneout=self.zoneout,
      dropout=self.dropout,
      key=self._key(_given(deterministic, self.deterministic), rngs),
      recompute=self.recompute,
    )
    if reverse and not _given(keep_order, self.keep_order):
      outputs = _flip(outputs, lengths)
    outputs = outputs.reshape(steps, *batch, outputs.shape[-1])
    outputs = jnp.moveaxis(outputs, 0, time)
    if not _given(return_carry, self.return_carry):
      return outputs
    carry = jax.tree.map(lambda c: c.reshape(*batch, c.shape[-1]), carry)
    return self._flax_carry(carry), outputs

  @property
  def num_feature_axes(self) -> int:
    """Of a cell of Flax, which this is not."""
    name = type(self).__name__
    raise AttributeError(
      f"{name} is a layer, not a cell: it sweeps over sequences itself. Write "
      f"{name}(...) in place of nnx.RNN({name}(...)), with the arguments of "
      "nnx.RNN as its own."
    )

  def _key(self, deterministic: bool, rngs: Rngs | None) -> jax.Array | None:
    if deterministic or self.rngs is None:
      return None
    rngs = self.rngs if rngs is None else rngs
    if isinstance(rngs, nnx.Rngs):
      return rngs["dropout"]()
    return rngs() if isinstance(rngs, nnx.RngStream) else rngs

  def _flat_carry(self, carry: Any, batch: tuple[int, ...]) -> Any:
    def flat(array: jax.Array) -> jax.Array:
      shape = jnp.shape(array)
      if shape[:-1] != batch:
        raise ValueError(
          f"{type(self).__name__}: an array of the initial carry has the shape "
          f"{shape}, but must have {(*batch, 'H')}, as the inputs: there is no "
          "axis of layers."
        )
      return jnp.reshape(array, (_size(batch), shape[-1]))

    return jax.tree.map(flat, carry)

  def _flax_carry(self, carry: Any) -> Any:
    return carry


class LSTM(Recurrent):
  """For `nnx.RNN(nnx.OptimizedLSTMCell(...))`; a carry is (c, h), as there.

  >>> layer = LSTM(3, 5, rngs=nnx.Rngs(0))
  >>> (c, h), outputs = layer(jnp.ones((2, 7, 3)), return_carry=True)
  >>> outputs.shape, c.shape
  ((2, 7, 5), (2, 5))
  """

  cell = lstm.cell

  def _flat_carry(self, carry: Any, batch: tuple[int, ...]) -> Any:
    if carry is not None and not isinstance(carry, lstm.LSTMCarry):
      memory, hidden = carry
      carry = lstm.LSTMCarry(hidden, memory)
    return super()._flat_carry(carry, batch)

  def _flax_carry(self, carry: lstm.LSTMCarry) -> tuple[jax.Array, jax.Array]:
    return carry.cell, carry.hidden


class GRU(Recurrent):
  """For `nnx.RNN(nnx.GRUCell(...))`; it has a bias more than that.

  >>> GRU(3, 5, rngs=nnx.Rngs(0))(jnp.ones((2, 7, 3))).shape
  (2, 7, 5)
  """

  cell = gru.cell


class UGRNN(Recurrent):
  """An update-gate network.

  >>> UGRNN(3, 5, rngs=nnx.Rngs(0))(jnp.ones((2, 7, 3))).shape
  (2, 7, 5)
  """

  cell = ugrnn.cell


class Elman(Recurrent):
  """For `nnx.RNN(nnx.SimpleCell(...))`.

  >>> Elman(3, 5, rngs=nnx.Rngs(0))(jnp.ones((2, 7, 3))).shape
  (2, 7, 5)
  """

  cell = elman.cell


class GatedInput(Recurrent):
  """An update-gate network that gates its inputs as well.

  >>> GatedInput(3, 5, rngs=nnx.Rngs(0))(jnp.ones((2, 7, 3))).shape
  (2, 7, 5)
  """

  cell = gated_input.cell


def _given(value: bool | None, default: bool) -> bool:
  return default if value is None else value


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
  return shape[:axis] + shape[axis + 1 :]


def _size(shape: tuple[int, ...]) -> int:
  size = 1
  for length in shape:
    size *= length
  return size


def _flip(outputs: jax.Array, lengths: jax.Array | None) -> jax.Array:
  """The outputs [T, B, H] of each sequence in reverse; padding stays last."""
  if lengths is None:
    return jnp.flip(outputs, 0)
  steps = len(outputs)
  times = (jnp.arange(steps)[::-1, None] + lengths) % steps
  return jnp.take_along_axis(outputs, times[..., None], 0)
