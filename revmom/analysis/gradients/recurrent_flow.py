"""What a recurrence does to gradients, step by step or position by position.

The cells' hand-derived backward passes return the adjoints of all states and
gates at every step, so one forward and one backward pass measure all of them.
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from revmom.analysis.gradients import norms
from revmom.analysis.gradients.gradient_flow import Loss, random_direction
from revmom.analysis.gradients.layer_spectrum import LayerSpectra, layer_spectra
from revmom.analysis.gradients.norms import Norms
from revmom.analysis.gradients.text import Names, number, table
from revmom.cells import Cell


class RecurrentFlow(NamedTuple):
  """Figures of every step [T], or of every position of a grid [S_1, ..., S_n].

  Everything is a measurement.  `adjoints` are dL/dh and so on in full: of all
  ways in which a state acts on the loss.
  """

  loss: jax.Array  # []
  inputs: Norms
  outputs: Norms
  input_gradients: Norms
  adjoint_names: Names
  adjoints: tuple[Norms, ...]  # of each state and gate, by name
  parameter_names: Names
  parameters: tuple[Norms, ...]  # of single arrays: []
  parameter_gradients: tuple[Norms, ...]

  def adjoint(self, name: str) -> Norms:
    """The adjoints of one state or gate.

    Raises:
      KeyError: there is none of that name.
    """
    if name not in self.adjoint_names:
      raise KeyError(f"{name}; there are {', '.join(self.adjoint_names)}")
    return self.adjoints[self.adjoint_names.index(name)]

  @property
  def problems(self) -> list[str]:
    """Sentences about what is not finite or zero, and where first."""
    loss = float(self.loss)
    found = [] if math.isfinite(loss) else [f"the loss is {loss}"]
    found += _not_finite("inputs", self.inputs)
    found += _not_finite("outputs", self.outputs)
    if not np.any(self.outputs.norm):
      found.append("outputs: all are zero")
    for name, values in zip(self.adjoint_names, self.adjoints, strict=True):
      found += _not_finite(f"adjoint of {name}", values)
      if not np.any(values.norm):
        found.append(f"adjoint of {name}: zero everywhere")
    zero = np.asarray(self.input_gradients.norm) == 0
    if zero.any():
      found.append(
        "gradients of inputs: zero, or too small for their type, at "
        f"{zero.sum()} of {zero.size} steps, such as {_first(zero)}"
      )
    for name, values in zip(
      self.parameter_names, self.parameter_gradients, strict=True
    ):
      found += _not_finite(f"gradient of {name}", values)
      if values.elements and not values.norm:
        found.append(f"gradient of {name}: zero")
    return found

  def __str__(self) -> str:
    shape = self.outputs.norm.shape
    places = list(np.ndindex(shape))
    shown = sorted(
      {*places[:4], *places[-4:], *places[:: len(places) // 8 + 1]}
    )
    columns = [self.outputs.norm, self.input_gradients.norm]
    columns += [adjoint.norm for adjoint in self.adjoints]
    rows = [
      [",".join(map(str, place)), *(number(c[place]) for c in columns)]
      for place in shown
    ]
    header = ["norms at step", "outputs", "d/d inputs"]
    header += [f"d/d {name}" for name in self.adjoint_names]
    weights = [
      [name, number(own.norm), number(gradient.norm)]
      for name, own, gradient in zip(
        self.parameter_names,
        self.parameters,
        self.parameter_gradients,
        strict=True,
      )
    ]
    parts = [
      f"loss {number(self.loss)}",
      table(header, rows),
      table(["", "norm", "gradient norm"], weights),
      *(f"PROBLEM: {problem}." for problem in self.problems),
    ]
    return "\n".join(parts)


def _first(where: np.ndarray) -> str:
  return ",".join(str(int(axis)) for axis in np.argwhere(where)[0])


def _not_finite(what: str, values: Norms) -> list[str]:
  wrong = np.asarray(values.not_finite) > 0
  if not wrong.any():
    return []
  if not wrong.ndim:
    return [f"{what}: {int(values.not_finite)} elements are not finite"]
  return [
    f"{what}: not finite at {wrong.sum()} of {wrong.size} steps, first at "
    f"{_first(wrong)}"
  ]


def recurrent_flow(
  cell: Any,
  params: Any,
  xs: jax.Array,
  *,
  loss: Loss | None = None,
  **options: Any,
) -> RecurrentFlow:
  """Measures activations and adjoints at every step of a recurrence.

  Args:
    cell: such as `revmom.cells.lstm`, or its `cell`; also `mdrnn` and `mdlstm`.
    params: of the cell.
    xs: [T, B, D], or [S_1, ..., S_n, B, D] of grids.
    loss: outputs -> scalar.  None is an inner product of the last step's
      outputs with a random direction of length one.
    **options: of the cell's `forward`, such as `lengths`.

  Returns:
    `RecurrentFlow`; under `jit`, too, and the same.

  >>> import jax.numpy as jnp
  >>> from revmom.cells import elman
  >>> params = elman.init(jax.random.key(0), 3, 5)
  >>> flow = recurrent_flow(elman, params, jnp.ones((7, 2, 3)))
  >>> flow.adjoint_names, flow.adjoint("hidden").norm.shape
  (('hidden',), (7,))
  >>> print(flow.adjoint("hidden").norm[-1].round(4))
  1.0
  """
  outputs, *_, residuals = cell.forward(params, xs, **options)
  value, bars = jax.value_and_grad(loss or _random_last)(outputs)
  gradients = cell.backward(params, residuals, bars, adjoints=True)
  leading = xs.ndim - 2
  at_steps = lambda array: norms.norms(norms.sums(array, leading))
  adjoints = {
    jax.tree_util.keystr(path, simple=True, separator="."): array
    for path, array in jax.tree.leaves_with_path(gradients.adjoints)
  }
  own, bars = (
    {
      jax.tree_util.keystr(path, simple=True, separator="."): norms.norms(
        norms.sums(array)
      )
      for path, array in jax.tree.leaves_with_path(tree)
    }
    for tree in (params, gradients.params)
  )
  return RecurrentFlow(
    value,
    at_steps(xs),
    at_steps(outputs),
    at_steps(gradients.inputs),
    Names(adjoints),
    tuple(map(at_steps, adjoints.values())),
    Names(own),
    tuple(own.values()),
    tuple(bars[name] for name in own),
  )


def _random_last(outputs: jax.Array) -> jax.Array:
  """The inner product of the last step with a random direction."""
  return random_direction(outputs[(-1,) * (outputs.ndim - 2)])


def recurrent_spectra(
  cell: Cell,
  params: Any,
  xs: jax.Array,
  initial_carry: Any = None,
  *,
  key: jax.Array | None = None,
) -> LayerSpectra:
  """Singular values of d carry_t / d carry_{t-1}, and of their products.

  Every step is a layer: see `layer_spectra`.  The carries of all sequences of
  the batch are one vector, so give one sequence, or a few.

  Args:
    cell: a `Cell`, such as `revmom.cells.lstm.cell`.
    params: of the cell.
    xs: [T, B, D].
    initial_carry: as of `cell.forward`.
    key: of the random directions of estimates.

  >>> import jax.numpy as jnp
  >>> from revmom.cells import elman
  >>> params = elman.init(jax.random.key(0), 3, 5)
  >>> spectra = recurrent_spectra(elman.cell, params, jnp.ones((7, 1, 3)))
  >>> spectra.layers.log_values.shape
  (7, 5)
  """
  if initial_carry is None:
    initial_carry = cell.initial_carry(params, xs.shape[1])
  step = lambda inputs, carry: cell.step(params, carry, inputs)[0]
  spectra = layer_spectra(step, xs, initial_carry, key=key)
  return spectra._replace(names=Names(f"step {t}" for t in range(len(xs))))
