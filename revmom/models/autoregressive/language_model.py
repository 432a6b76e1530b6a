r"""Recurrent language models with tied embeddings.

.. math::
  P(w_t \mid w_1, \ldots, w_{t-1}) = \mathrm{softmax}_w(e_w^\top h_{t-1})

The cell reads the embeddings e that also score the next token (Press & Wolf
2017, "Using the output embedding to improve language models"), and h_0 is
learned.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from revmom.cells.sequences import lstm
from revmom.cells.sequences.cell import Cell
from revmom.models.autoregressive.causal_network import (
  CausalNetwork,
  class_embedding,
  class_table,
)
from revmom.models.autoregressive.conditional import Conditional, categorical
from revmom.numerics import broadcasting, product

_SCALE = 0.3  # of the embeddings at first


class Params(NamedTuple):
  """Weights of a language model."""

  embeddings: jax.Array  # e [V, E]
  cell: Any  # of the cell; h [E]
  classes: jax.Array | None = None  # [classes, E]


def tokens(vocabulary: int) -> Conditional:
  """`categorical`, of which networks see the integers 0, ..., V - 1 themselves.

  They come as floats, which are exact up to a vocabulary of 2^24.

  >>> print(tokens(3).encode(jnp.array([0, 2])))
  [0. 2.]
  """
  of_integers = categorical(vocabulary)

  def encode(x: jax.Array) -> jax.Array:
    of_integers.encode(x)  # which refuses floats
    return jnp.asarray(x).astype(float)

  return of_integers._replace(encode=encode)


def init(
  key: jax.Array,
  vocabulary: int,
  embedding_size: int,
  hidden_size: int | None = None,
  *,
  cell: Cell = lstm.cell,
  num_classes: int = 0,
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> Params:
  """Random weights, and an h_0 of zeros.

  Args:
    key: of the random weights.
    vocabulary: V, different tokens.
    embedding_size: E.
    hidden_size: cells; None is E.  If they are others, an LSTM's output is
      projected; other cells can't.
    cell: such as `lstm.cell` or `gru.cell`.
    num_classes: 0 for a model without classes.
    dtype: of the parameters.

  Raises:
    ValueError: a cell without projection has not as many units as an embedding
      has elements.
  """
  of_embeddings, of_cell = jax.random.split(key)
  size = embedding_size
  hidden_size = hidden_size or size
  shape = (vocabulary, size)
  options = {}
  if hidden_size != size:
    if cell.name != lstm.cell.name:
      raise ValueError(
        f"got hidden_size={hidden_size} and embedding_size={size} for the "
        f"{cell.name} cell, expected the same: only the LSTM has a projection."
      )
    options["projection_size"] = size
  return Params(
    _SCALE * jax.random.normal(of_embeddings, shape, dtype),
    cell.init(
      of_cell, size, hidden_size, learned_carry=True, dtype=dtype, **options
    ),
    class_table(num_classes, size, dtype),
  )


@broadcasting
def initial(
  params: Params,
  batch: int,
  label: jax.Array | None = None,
  *,
  cell: Cell = lstm.cell,
) -> Any:
  """The learned carry before the first token, of which h_0 is the first array.

  A class adds its embedding to h_0, and to those of all tokens.

  Args:
    params: of the model.
    batch: B.
    label: integers [B], for a model with classes.
    cell: of the model.
  """
  carry = cell.initial_carry(params.cell, batch)
  classes = class_embedding(params.classes, label)
  if classes is None:
    return carry
  structure: Any = jax.tree.structure(carry)
  h, *others = jax.tree.leaves(carry)
  return structure.unflatten([h + classes.astype(h.dtype), *others])


@broadcasting
def log_probs(
  params: Params,
  tokens: jax.Array,
  carry: Any,
  label: jax.Array | None = None,
  *,
  cell: Cell = lstm.cell,
) -> tuple[jax.Array, Any]:
  """log P of each token given those before it, and the carry after the last.

  With carries handed on, long texts are read window by window.

  Args:
    params: of the model.
    tokens: int32 [T, B].
    carry: the state before the first, such as `initial` gives.
    label: integers [B], for a model with classes.
    cell: of the model.

  Returns:
    [T, B] in nats, float32 or wider, and the carry.

  >>> params = init(jax.random.key(0), 5, 4)
  >>> values, carry = log_probs(
  ...   params, jnp.zeros((7, 2), jnp.int32), initial(params, 2)
  ... )
  >>> values.shape, carry.hidden.shape
  ((7, 2), (2, 4))
  """
  inputs = _read(params, tokens, class_embedding(params.classes, label))
  outputs, after = cell.apply(params.cell, inputs, carry)
  scores = _scores(params, _before(carry, outputs)[:-1])
  return categorical(len(params.embeddings)).log_prob(scores, tokens), after


def language_model(
  embedding_size: int = 128,
  hidden_size: int | None = None,
  *,
  cell: Cell = lstm.cell,
  num_classes: int = 0,
) -> CausalNetwork:
  """A language model as a network for sequences of `tokens` [T].

  Images and clips go in as what they are flattened to.

  Args:
    embedding_size: E.
    hidden_size: as for `init`.
    cell: as for `init`.
    num_classes: 0 for a model without classes.

  Returns:
    A `CausalNetwork` of events [T], whose parameters are those of `init`.

  >>> from revmom.models import Autoregressive
  >>> model = Autoregressive(language_model(4), tokens(5))
  >>> x = jnp.zeros((2, 7), jnp.int32)
  >>> params = model.init(jax.random.key(0), x)
  >>> model.log_prob(params, x).shape
  (2,)
  """

  def init_network(key, inputs, num_outputs):
    return init(
      key,
      num_outputs,
      embedding_size,
      hidden_size,
      cell=cell,
      num_classes=num_classes,
      dtype=inputs.dtype,
    )

  def forward(params, inputs, label):
    classes = class_embedding(params.classes, label)
    before = _read(params, as_tokens(inputs[:, :-1].T), classes)
    carry = initial(params, len(inputs), label, cell=cell)
    outputs, _ = cell.apply(params.cell, before, carry)
    return jnp.swapaxes(_scores(params, _before(carry, outputs)), 0, 1)

  def start(params, shape, label):
    carry = initial(params, shape[0], label, cell=cell)
    return carry, class_embedding(params.classes, label)

  def step(params, cache, inputs, position):
    carry, classes = cache
    before = as_tokens(inputs[:, jnp.maximum(position - 1, 0)])
    after, _ = cell.step(params.cell, carry, _read(params, before, classes))
    # Before the first token there is none to read.
    carry = jax.tree.map(
      lambda old, new: jnp.where(position > 0, new, old), carry, after
    )
    return _scores(params, _output(carry)), (carry, classes)

  return CausalNetwork(init_network, forward, start, step, event_ndim=1)


def as_tokens(inputs: jax.Array) -> jax.Array:
  """The integers that `tokens` encoded."""
  return inputs.astype(jnp.int32)


def _read(
  params: Params, tokens: jax.Array, classes: jax.Array | None
) -> jax.Array:
  """What the cell reads of tokens [..., B]: [..., B, E]."""
  embedded = jnp.asarray(params.embeddings)[tokens]
  return embedded if classes is None else embedded + classes


def _output(carry: Any) -> jax.Array:
  """h, the first array of a carry."""
  return jax.tree.leaves(carry)[0]


def _before(carry: Any, outputs: jax.Array) -> jax.Array:
  """h_0, h_1, ... from the first carry and the outputs after it."""
  first = _output(carry)[None]
  return jnp.concatenate([first, outputs.astype(first.dtype)])


def _scores(params: Params, h: jax.Array) -> jax.Array:
  """e_w . h for all w: [..., V]."""
  return product(h, params.embeddings.T)
