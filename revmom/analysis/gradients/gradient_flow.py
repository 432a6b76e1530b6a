"""What a network does to activations and gradients, layer by layer.

One forward and one backward pass measure every layer: a tap behind each lets
values through and, in the backward pass, sums up what passed and what came
back (see `norms`).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from revmom.analysis.gradients import module_layers, norms
from revmom.analysis.gradients.layer_spectrum import (
  LayerSpectra,
  layer_spectra,
)
from revmom.analysis.gradients.layer_stack import LayerStack, layer_stack
from revmom.analysis.gradients.module_spectra import module_spectra
from revmom.analysis.gradients.norms import Norms
from revmom.analysis.gradients.text import Names, number, table

Loss = Callable[[Any], jax.Array]

_GROWTH = 1e4  # of gradients or activations in a network, or its inverse


class GradientFlow(NamedTuple):
  """Figures of the input and, behind it, of every layer; arrays [1 + L].

  Everything here is a measurement, but for what `spectra` calls a bound.
  `print` shows a table; `problems` names layers whose figures mean trouble.
  """

  names: Names
  loss: jax.Array  # []
  activations: Norms  # of what a layer returns; first, of the input
  gradients: Norms  # of the loss with respect to that
  parameters: Norms
  parameter_gradients: Norms
  spectra: LayerSpectra | None = None

  @property
  def problems(self) -> list[str]:
    """Sentences about what is not finite, dead, unreached or out of scale.

    Gradients vanish or explode if the norm at a layer is `_GROWTH` times that
    at the result, or less than 1 / `_GROWTH`; activations explode if their rms
    is that much more than 1 and than that of the input.
    """
    loss = float(self.loss)
    found = [] if math.isfinite(loss) else [f"the loss is {loss}"]
    values = jax.tree.map(np.asarray, (self.activations, self.gradients))
    weights = jax.tree.map(
      np.asarray, (self.parameters, self.parameter_gradients)
    )
    for row, name in enumerate(self.names):
      at_row = lambda leaf, row=row: leaf[row]
      found += [
        f"{name}: {what}"
        for what in (
          *_of_parameters(*jax.tree.map(at_row, weights)),
          *_of_values(*jax.tree.map(at_row, values)),
        )
      ]
    found += _growth(self.names, *values)
    return found + (self.spectra.problems if self.spectra else [])

  def __str__(self) -> str:
    columns = {
      "activations rms": self.activations.rms,
      "zero": self.activations.zeros,
      "gradient norm": self.gradients.norm,
      "rms": self.gradients.rms,
      "parameters norm": self.parameters.norm,
      "gradient norm ": self.parameter_gradients.norm,
    }
    rows = [
      [name, *(number(values[i]) for values in columns.values())]
      for i, name in enumerate(self.names)
    ]
    parts = [
      f"loss {number(self.loss)}",
      table(["", *columns], rows),
      *(f"PROBLEM: {problem}." for problem in self.problems),
    ]
    return "\n".join(parts + ([str(self.spectra)] if self.spectra else []))


def _of_values(activations: Norms, gradients: Norms) -> list[str]:
  if not activations.elements:
    return ["the loss does not depend on its result"]
  found = []
  if activations.not_finite:
    found.append(_not_finite("activations", activations))
  elif not activations.norm:
    found.append("all activations are zero; it is dead")
  if gradients.not_finite:
    found.append(_not_finite("gradients", gradients))
  elif not gradients.norm:
    found.append("the gradient is zero, or too small for its type")
  return found


def _growth(names: Names, activations: Norms, gradients: Norms) -> list[str]:
  """The first layer out of scale on the way, and the worst."""
  found = []
  scale = max(1.0, float(np.nan_to_num(activations.rms[0])))
  ratios = activations.rms / scale
  for row in np.flatnonzero(ratios > _GROWTH)[:1]:
    found.append(
      f"{names[row]}: activations explode: their rms is "
      f"{number(activations.rms[row])} here and up to "
      f"{number(np.nanmax(activations.rms))}"
    )
  result = gradients.norm[-1]
  if not (np.isfinite(result) and result > 0):
    return found
  ratios = gradients.norm.astype(np.float64) / np.float64(result)
  for what, rows, worst in (
    ("explode", ratios > _GROWTH, np.nanmax(ratios)),
    (
      "vanish",
      (ratios > 0) & (ratios < 1 / _GROWTH),
      np.nanmin(np.where(ratios > 0, ratios, np.inf)),
    ),
  ):
    for row in np.flatnonzero(rows)[-1:]:
      found.append(
        f"{names[row]}: gradients {what}: their norm is {number(ratios[row])} "
        f"of the result's here and {number(worst)} at the worst"
      )
  return found


def _of_parameters(parameters: Norms, gradients: Norms) -> list[str]:
  if parameters.not_finite:
    return [_not_finite("parameters", parameters)]
  if gradients.not_finite:
    return [_not_finite("gradients of its parameters", gradients)]
  if gradients.elements and not gradients.norm:
    return ["the gradient of its parameters is zero"]
  return []


def _not_finite(what: str, figures: Norms) -> str:
  count, elements = int(figures.not_finite), int(figures.elements)
  return f"{count} of {elements} {what} are not finite"


def gradient_flow(
  network: Any,
  params: Any,
  x: Any,
  *,
  loss: Loss | None = None,
  spectra: bool = False,
  **options: Any,
) -> GradientFlow:
  r"""Measures activations, gradients and Jacobians of every layer.

  .. math::
    \bar x_{l-1} = (\partial x_l / \partial x_{l-1})^\top \bar x_l, \qquad
    \bar\theta_l = (\partial x_l / \partial \theta_l)^\top \bar x_l

  with x_l the result of layer l.  Norms take one forward and one backward pass
  for all layers.

  Args:
    network: functions layer(params, x) -> y, one after the other; or one such
      function, applied once for each row of stacked parameters by a scan; or a
      Flax module, Linen or NNX, whose code need not change.  Each module that
      is called is a row there, in the order in which they return; one that is
      called several times, or in a loop, is a row with the sums over calls.
    params: a list with the parameters of each function; a pytree of arrays
      [L, ...]; the variables of a Linen module; `nnx.State` of the `nnx.Param`
      of an NNX module, or None for its own.
    x: the input, a pytree of arrays.  Of a module with several arguments, a
      tuple of them.
    loss: result -> scalar.  None is an inner product with a random direction of
      length one, so that the gradient of the result has norm one.
    spectra: also measures singular values of all Jacobians, see
      `layer_spectra`, at x as it is: give one example, or a few.
    **options: for the call of a module, such as `train=True` or `rngs=...`.

  Returns:
    `GradientFlow`; under `jit`, too, and the same.

  Raises:
    ValueError: layers, parameters and input do not fit.

  >>> layer = lambda w, x: jnp.tanh(w @ x)
  >>> flow = gradient_flow(layer, jnp.stack([jnp.eye(2)] * 3), jnp.ones(2))
  >>> flow.names
  ('input', 'layer 0', 'layer 1', 'layer 2')
  >>> [f"{norm:.2f}" for norm in flow.activations.norm], flow.problems
  (['1.41', '1.08', '0.91', '0.80'], [])
  """
  if isinstance(network, linen.Module | nnx.Module):
    tapped = module_layers.tapped(network, params, x, options)
  else:
    if options:
      raise ValueError(
        f"options {sorted(options)} are for calls of Flax modules; give "
        "functions what they need by functools.partial."
      )
    tapped = _tapped_stack(layer_stack(network, params, x))
  flow = _measure(tapped, x, loss or random_direction)
  if not spectra:
    return flow
  if isinstance(network, linen.Module | nnx.Module):
    return flow._replace(spectra=module_spectra(network, params, x, **options))
  return flow._replace(spectra=layer_spectra(network, params, x))


def _measure(tapped: module_layers.Tapped, x: Any, loss: Loss) -> GradientFlow:
  """One value and one gradient, of parameters and of tokens."""
  names = ("input", *tapped.names)

  def objective(params: Any, tokens: jax.Array) -> jax.Array:
    result = tapped.run(params, tokens[1:], norms.tap(x, tokens[0]))
    return loss(result)

  value, (param_bars, token_bars) = jax.value_and_grad(
    objective, (0, 1), allow_int=True
  )(tapped.params, norms.tokens(len(names)))
  none = jnp.zeros((1, norms.SUMS))
  of_rows = lambda tree: norms.norms(
    jnp.concatenate([none, tapped.parameter_sums(tree)])
  )
  return GradientFlow(
    Names(names),
    value,
    norms.norms(token_bars[:, 0]),
    norms.norms(token_bars[:, 1]),
    of_rows(tapped.params),
    of_rows(param_bars),
  )


def random_direction(result: Any) -> jax.Array:
  """The inner product with a fixed random direction of length one.

  >>> print(jnp.linalg.norm(jax.grad(random_direction)(jnp.ones(9))).round(4))
  1.0
  """
  wide = jnp.zeros(()).dtype
  leaves = [
    jnp.ravel(leaf).astype(wide)
    for leaf in jax.tree.leaves(result)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  ]
  flat = jnp.concatenate([jnp.zeros(0, wide), *leaves])
  direction = jax.random.normal(jax.random.key(0), flat.shape, wide)
  return flat @ (direction / jnp.linalg.norm(direction))


def _tapped_stack(stack: LayerStack) -> module_layers.Tapped:
  def run(params: Any, tokens: jax.Array, x: Any) -> Any:
    def step(layer, params, token, x):
      return norms.tap(layer(params, x), token), None

    return stack._replace(params=params).fold(step, x, tokens)[0]

  def parameter_sums(params: Any) -> jax.Array:
    if stack.scanned:
      return norms.sums(params, 1)
    return jnp.stack([norms.sums(layer) for layer in params])

  return module_layers.Tapped(stack.names(), run, stack.params, parameter_sums)
