r"""Long short-term memory on grids of any number of dimensions.

Pre-activations :math:`a = W^T x + b + \sum_d R_d^T h_d` of the gates come from
the input and from the hidden states :math:`h_d` of the n neighbours;
:math:`c_d` are the neighbours' memories, and both are zero beyond the grid.

"graves" has a forget gate for each axis, and optional peepholes p (Graves,
Fernandez & Schmidhuber 2007, "Multi-dimensional recurrent neural networks"):

.. math::
  g &= \tanh(a_g), \quad i = \sigma(a_i + p_i \sum\nolimits_d c_d), \quad
    f_d = \sigma(a_{f_d} + p_{f_d} c_d), \\
  c &= i g + \sum\nolimits_d f_d c_d, \quad
    o = \sigma(a_o + p_o c), \quad h = o \tanh(c).

Its memory can grow with the number of paths that lead to a cell, as several
forget gates may be open.  The cells of Leifert, Strauss, Gruening, Wustlich &
Labahn (JMLR 2016, "Cells in multidimensional recurrent neural networks") merge
the memories with shares :math:`\lambda` that sum to one,
:math:`s = \sum_d \lambda_d c_d`.  Here they are
:math:`\lambda = \mathrm{softmax}(a_{\lambda_1}, \dots, a_{\lambda_{n-1}}, 0)`:
:math:`\sigma(a_\lambda)` and :math:`1 - \sigma(a_\lambda)` for two dimensions,
the form in which RETURNN has the stable cell, and nothing for one.  "stable" is

.. math:: c = i g + f s, \qquad h = o \tanh(c),

and "leaky", whose memory is a mean of what it has seen, the first-order low
pass ("LeakyLP") with two output gates,

.. math:: c = (1 - f) g + f s, \qquad h = \tanh(o\, c + o'\, s).

In one dimension "graves" and "stable" are the LSTM.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from revmom.cells.grids import equations, grid_weights
from revmom.cells.grids.equations import Adjoint, Seen, Values
from revmom.cells.grids.grid_cell import GridCell, State
from revmom.cells.grids.memory_cells import GRAVES, LEAKY, STABLE, Adjoints
from revmom.numerics import accumulator, total

__all__ = [
  "Adjoints",
  "LeakyParams",
  "Params",
  "StableParams",
  "State",
  "apply",
  "backward",
  "cell",
  "forward",
  "init",
  "step",
]


class Params(NamedTuple):
  """Weights of a layer with Graves' cell; blocks are g, i, o, f_1, ..., f_n."""

  input_weights: jax.Array  # [D, (n + 3) H]
  recurrent_weights: jax.Array  # [n, H, (n + 3) H], a matrix for each axis
  bias: jax.Array | None  # [(n + 3) H]
  peephole: jax.Array | None  # [n + 2, H]: p_i, p_o, p_f1, ..., p_fn


class StableParams(Params):
  """Of the stable cell; blocks are g, i, o, f, and n - 1 for the shares."""


class LeakyParams(Params):
  """Of the leaky cell; blocks are g, o, o', f, and n - 1 for the shares."""


CELLS = {"graves": Params, "stable": StableParams, "leaky": LeakyParams}


def init(
  key: jax.Array,
  input_size: int,
  hidden_size: int,
  *,
  ndim: int = 2,
  cell: str = "graves",
  bias: bool = True,
  forget_bias: float | None = None,
  peephole: bool = False,
  dtype: DTypeLike = jnp.float32,
) -> Params:
  """Draws the weights of a layer.

  Args:
    key: of `jax.random`.
    input_size: D, the features of an input.
    hidden_size: H, the units of a cell.
    ndim: n, the dimensions of the grid.
    cell: "graves", "stable" or "leaky".
    bias: whether to have one.
    forget_bias: where the bias of the forget gates starts; the rest of it
      starts at zero.  None is 1, or, where memories of several neighbours add
      up ("graves" with n > 1), -log(n - 1): the gates then sum to one.
    peephole: whether Graves' cell has peepholes; they start at zero.
    dtype: of the parameters.

  Returns:
    `Params`, `StableParams` or `LeakyParams`: the type tells the cell.

  Raises:
    ValueError: an unknown cell, a size below one, peepholes of another cell,
      or a forget_bias without a bias.

  >>> params = init(jax.random.key(0), 3, 5, cell="leaky")
  >>> params.recurrent_weights.shape
  (2, 5, 25)
  >>> ys, residuals = forward(params, jnp.ones((8, 6, 1, 3)), direction=(1, -1))
  >>> bars = jnp.zeros_like(ys).at[7, 0].set(1.0)
  >>> gradients = backward(params, residuals, bars, adjoints=True)
  >>> gradients.adjoints.gates.share[1].shape
  (8, 6, 1, 5)
  """
  if cell not in CELLS:
    raise ValueError(f"cell={cell!r}; choose one of {tuple(CELLS)}.")
  if peephole and cell != "graves":
    raise ValueError(
      f'cell={cell!r} has no peepholes; use cell="graves" or peephole=False.'
    )
  if not bias and forget_bias is not None:
    raise ValueError(
      f"forget_bias={forget_bias} needs a bias; use bias=True or leave it out."
    )
  weights = grid_weights.init(key, input_size, hidden_size, ndim, ndim + 3)
  adds_up = cell == "graves" and ndim > 1
  if forget_bias is None:
    forget_bias = -float(np.log(ndim - 1)) if adds_up else 1.0
  forget_gates = ndim if cell == "graves" else 1
  blocks = np.zeros((ndim + 3, hidden_size))
  blocks[3 : 3 + forget_gates] = forget_bias
  params = CELLS[cell](
    *weights,
    bias=jnp.asarray(blocks.reshape(-1)) if bias else None,
    peephole=jnp.zeros((ndim + 2, hidden_size)) if peephole else None,
  )
  return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def _equations(params: Params) -> equations.Equations:
  """Those of the cell that the type of its parameters tells."""
  of_cell, peephole = GRAVES, None
  if isinstance(params, StableParams | LeakyParams):
    of_cell = STABLE if isinstance(params, StableParams) else LEAKY
  if params.peephole is not None:
    wide = accumulator(params.recurrent_weights.dtype)
    peephole = tuple(params.peephole.astype(wide))

  def forward(a: jax.Array, previous: tuple[jax.Array, ...]) -> Values:
    return Values(*of_cell.forward(_blocks(params, a), previous, peephole))

  def adjoint(h_bar: jax.Array, c_bar: jax.Array, seen: Seen) -> Adjoint:
    a_bars, previous_bars, adjoints = of_cell.adjoint(
      h_bar, c_bar, *seen, peephole
    )
    return Adjoint(jnp.concatenate(a_bars, -1), previous_bars, adjoints)

  return equations.Equations(forward, adjoint)


def _blocks(params: Params, a: jax.Array) -> tuple[jax.Array, ...]:
  return tuple(jnp.split(a, params.recurrent_weights.shape[0] + 3, -1))


def _peephole_gradient(
  params: Params, kept: Adjoint, seen: Seen
) -> dict[str, jax.Array]:
  """That of p [n + 2, H]: what each peephole saw, times its adjoint."""
  if params.peephole is None:
    return {}
  _, a_i, a_o, *a_f = _blocks(params, kept.a)
  previous = seen.previous or ()
  saw = sum(previous[1:], previous[0]), seen.state, *previous
  terms = [total(a * c) for a, c in zip((a_i, a_o, *a_f), saw, strict=True)]
  return {"peephole": jnp.stack(terms).astype(params.peephole.dtype)}


cell = GridCell(
  init, _equations, has_memory=True, other_gradients=_peephole_gradient
)
step, forward = cell.step, cell.forward
backward, apply = cell.backward, cell.apply
