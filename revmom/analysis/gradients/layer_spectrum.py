"""Singular values of the Jacobian of every layer, and of their products.

The Jacobian of L layers is J_L ... J_1.  Its singular values leave the range
of floats long before a network is deep, so products are formed with a factor
taken out at every layer, whose logarithms are added up.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from revmom.analysis.gradients import linear_maps, norms
from revmom.analysis.gradients.layer_stack import (
  Layers,
  LayerStack,
  layer_stack,
)
from revmom.analysis.gradients.linear_maps import (
  Measured,
  is_float,
  linear_map,
  measured,
)
from revmom.analysis.gradients.spectrum import Spectrum
from revmom.analysis.gradients.text import Names, number, table


class LayerSpectra(NamedTuple):
  """Singular values of Jacobians, and bounds that follow from them.

  `products` has the Jacobian from the input to the result of each layer, or
  from the input to the last result only, where it is too large for matrices or
  layers are those of a module; its last row is that of the whole network.
  The bounds on it are products of the figures of `layers`, in logarithms and
  widened by their intervals: certain but for rounding, or where the spectra
  were estimated but for a probability of 1e-6 for each layer.  Modules need
  not be chains, so they have none.
  """

  names: Names
  layers: Spectrum  # [L]
  products: Spectrum  # [L] or [1]
  log_largest_bound: jax.Array | None  # [L]: no singular value is above it
  log_smallest_bound: jax.Array | None  # [L]: none is below it

  @property
  def problems(self) -> list[str]:
    """Sentences about Jacobians that are zero or not finite."""
    found = []
    for name, log in zip(
      self.names, np.asarray(self.layers.log_largest.value), strict=True
    ):
      if np.isnan(log) or log == np.inf:
        found.append(f"{name}: its Jacobian is not finite")
      elif log == -np.inf:
        found.append(f"{name}: its Jacobian is zero")
    if not found and np.isnan(self.products.log_largest.value[-1]):
      found.append("the Jacobian of the whole network is not finite")
    return found

  def __str__(self) -> str:
    spectra = self.layers
    rows = [
      [name, *_figures(spectra, i), *self._product(i)]
      for i, name in enumerate(self.names)
    ]
    title = "singular values s of Jacobians, measured; bounds are so called"
    header = ["", "largest s", "mean s^2", "smallest s", "spread of s^2"]
    return f"{title}\n" + table(
      [*header, "product's largest", "bound", "smallest", "bound"], rows
    )

  def _product(self, i: int) -> list[str]:
    """The last columns: of the product up to a layer."""
    last = i + 1 == len(self.names)
    row = i if len(self.products.spread.value) == len(self.names) else 0
    if row != i and not last:
      largest = smallest = ""
    else:
      largest = number(self.products.log_largest.value[row], log=True)
      smallest = _smallest(self.products, row)
    bounds = [
      "" if bound is None else number(bound[i], log=True)
      for bound in (self.log_largest_bound, self.log_smallest_bound)
    ]
    return [largest, bounds[0], smallest, bounds[1]]


def _figures(spectrum: Spectrum, row: int) -> list[str]:
  return [
    _with_interval(spectrum.log_largest, row),
    _with_interval(spectrum.log_mean_square, row),
    _smallest(spectrum, row),
    number(spectrum.spread.value[row]),
  ]


def _with_interval(figure: Any, row: int) -> str:
  """The number, and its interval if that has more than rounding error."""
  text = number(figure.value[row], log=True)
  low, high = (float(end) for end in figure.interval[row])
  if not high - low > 1e-2:
    return text
  return f"{text} [{number(low, log=True)}, {number(high, log=True)}]"


def _smallest(spectrum: Spectrum, row: int) -> str:
  """Below what, if that is all that can be said."""
  value = float(spectrum.log_smallest.value[row])
  high = float(spectrum.log_smallest.interval[row, 1])
  if float(spectrum.log_smallest.interval[row, 0]) == -np.inf:
    return "0" if value == -np.inf else f"< {number(high, log=True)}"
  return number(value, log=True)


def layer_spectra(
  layers: Layers, params: Any, x: Any, *, key: jax.Array | None = None
) -> LayerSpectra:
  """Singular values of the Jacobian of every layer, and of their products.

  All of them where no Jacobian has more than 512 rows or columns.  Else
  estimates by Golub & Kahan's bidiagonalisation, from products with the
  Jacobians and their transposes alone: see `Spectrum` for what is known then.

  Args:
    layers: as of `gradient_flow`: functions, or one for stacked parameters.
    params: of the layers.
    x: the input, as it is: if it is a batch of B examples that the layers treat
      alike but apart, then there are B times as many singular values.
    key: of the random directions of estimates; None is key 0.

  Returns:
    `LayerSpectra`, with bounds on the products.

  Raises:
    ValueError: layers, parameters and input do not fit.

  >>> rotations = jnp.stack([jnp.array([[0.0, -1.0], [1.0, 0.0]])] * 200)
  >>> spectra = layer_spectra(
  ...   lambda w, x: 0.1 * (w @ x), rotations, jnp.ones(2)
  ... )
  >>> log_largest = spectra.products.log_largest.value[-1]
  >>> print((log_largest / jnp.log(10)).round(2))
  -200.0
  """
  stack = layer_stack(layers, params, x)
  key = jax.random.key(0) if key is None else key
  sizes = _sizes(stack, x)
  if max(sizes) <= linear_maps.DENSE:
    jacobians, products, log_factors = _matrices(stack, x, sizes)
  else:
    jacobians = _krylov(stack, x, sizes, key)
    products, log_factors = _whole(stack, x, key)
  both = linear_maps.spectra([*jacobians, *products])
  of_layers = jax.tree.map(lambda leaf: leaf[: stack.length], both)
  of_products = jax.tree.map(lambda leaf: leaf[stack.length :], both)
  return LayerSpectra(
    Names(stack.names()),
    of_layers,
    of_products.times(log_factors),
    jnp.cumsum(of_layers.log_largest.interval[:, 1]),
    jnp.cumsum(of_layers.log_smallest.interval[:, 0]),
  )


def _floats(tree: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree) if is_float(leaf))


def _sizes(stack: LayerStack, x: Any) -> list[int]:
  """Numbers of floats in the input and in what each layer returns."""
  if callable(stack.layers):
    return [_floats(x)] * (stack.length + 1)
  sizes = []

  def run(params: Any, x: Any) -> None:
    def step(layer, params, _, x):
      x = layer(params, x)
      sizes.append(_floats(x))
      return x, None

    sizes.append(_floats(x))
    stack._replace(params=params).fold(step, x)

  jax.eval_shape(run, stack.params, x)
  return sizes


def _matrices(
  stack: LayerStack, x: Any, sizes: list[int]
) -> tuple[list[Measured], list[Measured], jax.Array]:
  """All Jacobians, all products less a factor, and its logarithm [L]."""

  def step(layer, params, _, carry):
    x, product, log_factor = carry
    x, linear = linear_map(lambda x: layer(params, x), x)
    jacobian = linear.matrix()
    product = jacobian @ product.astype(jacobian.dtype)
    size = jnp.max(jnp.abs(product))
    size = jnp.where((size > 0) & (size < jnp.inf), size, 1)
    product, log_factor = product / size, log_factor + jnp.log(size)
    return (x, product, log_factor), (jacobian, product, log_factor)

  dtype = linear_map(lambda x: x, x)[1].dtype
  start = jnp.eye(sizes[0], dtype=dtype), jnp.zeros((), dtype)
  _, results = stack.fold(step, (x, *start))
  if stack.scanned:
    jacobians, products, log_factors = results
    as_maps = lambda matrices: [Measured(matrices, sizes[0])]
    return as_maps(jacobians), as_maps(products), log_factors
  jacobians, products, log_factors = zip(*results, strict=True)
  return (
    [Measured(j[None], n) for j, n in zip(jacobians, sizes, strict=False)],
    [Measured(p[None], sizes[0]) for p in products],
    jnp.stack(log_factors),
  )


def _krylov(
  stack: LayerStack, x: Any, sizes: list[int], key: jax.Array
) -> list[Measured]:
  """What Krylov spaces say of every layer, where one is large."""

  def step(layer, params, key, x):
    x, linear = linear_map(lambda x: layer(params, x), x)
    return x, measured(linear, key).matrices

  _, results = stack.fold(step, x, jax.random.split(key, stack.length))
  if stack.scanned:
    return [Measured(results[:, 0], sizes[0])]
  return [Measured(m, n) for m, n in zip(results, sizes, strict=False)]


def _whole(
  stack: LayerStack, x: Any, key: jax.Array
) -> tuple[list[Measured], jax.Array]:
  """What is known of the whole less a factor, and its logarithm [1].

  The factor of a layer is what it does to one random direction.
  """

  def probe(layer, params, _, carry):
    x, direction = carry
    x, linear = linear_map(lambda x: layer(params, x), x)
    image = linear.matvec(direction.astype(linear.dtype))
    unit, factor = norms.scaled(image)
    size = jnp.linalg.norm(unit) * factor[0]
    size = jnp.where((size > 0) & (size < jnp.inf), size, 1)
    return (x, image / size), size

  key, probe_key = jax.random.split(key)
  first = linear_map(lambda x: x, x)[1]
  start = jax.random.normal(probe_key, (first.columns,), first.dtype)
  _, sizes = stack.fold(probe, (x, start / jnp.linalg.norm(start)))
  sizes = jnp.stack(sizes) if isinstance(sizes, list) else sizes

  def step(layer, params, size, x):
    return _with_slope(1 / size, layer(params, x)), None

  whole = lambda x: stack.fold(step, x, jax.lax.stop_gradient(sizes))[0]
  linear = linear_map(whole, x)[1]
  return [measured(linear, key)], jnp.sum(jnp.log(sizes))[None]


def _with_slope(slope: jax.Array, tree: Any) -> Any:
  """The tree, but with derivatives multiplied by the slope."""

  def one(leaf: Any) -> Any:
    if not is_float(leaf):
      return leaf
    still = jax.lax.stop_gradient(leaf)
    return still + slope.astype(leaf.dtype) * (leaf - still)

  return jax.tree.map(one, tree)
