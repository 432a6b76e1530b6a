"""The Hessian of a loss, layer by layer: trace, largest eigenvalues, density.

A block of the diagonal is the Hessian with respect to the parameters of one
layer, all others being constant.  It is known by its products alone
(Pearlmutter 1994), and every figure comes with its error.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from revmom.analysis.gradients.text import Names, number, table
from revmom.jacobian import (
  Eigenvalues,
  Estimate,
  SpectralDensity,
  hutchinson,
  spectral_density,
  top_eigenvalues,
)


class LayerCurvature(NamedTuple):
  """Figures of the Hessian's diagonal blocks, one entry for each layer."""

  names: Names
  sizes: Names  # numbers of parameters
  traces: tuple[Estimate, ...]
  largest: tuple[Eigenvalues, ...]  # the largest first, see `top_eigenvalues`
  smallest: tuple[Eigenvalues, ...]  # the most negative first
  densities: tuple[SpectralDensity, ...]

  def __str__(self) -> str:
    rows = []
    for name, size, trace, largest, smallest in zip(*self[:5], strict=True):
      low, high = trace.interval
      rows.append(
        [
          name,
          str(size),
          f"{number(trace.value)} [{number(low)}, {number(high)}]",
          *(
            f"{number(found.values[0])} ± {number(found.errors[0])}"
            for found in (largest, smallest)
          ),
        ]
      )
    header = [
      "",
      "parameters",
      "trace [95 %]",
      "largest eigenvalue",
      "smallest",
    ]
    return table(header, rows)


def layer_curvature(
  loss_fn: Callable[[Any], jax.Array],
  params: Any,
  key: jax.Array,
  *,
  is_layer: Callable[[Any], bool] | None = None,
  num_samples: int = 8,
  num_steps: int = 16,
  count: int = 1,
) -> LayerCurvature:
  r"""Trace, extreme eigenvalues and spectral density of each layer's Hessian.

  .. math::
    H_l = \partial^2 L / \partial\theta_l^2

  The trace by `hutchinson`, eigenvalues by `top_eigenvalues` of H_l and -H_l,
  the density by `spectral_density`: num_samples + 2 num_steps + num_samples
  num_steps products with each H_l, of about two gradients each.  Python loops
  over layers, so jit this.

  Args:
    loss_fn: params -> scalar.
    params: a pytree of floats.
    key: a random key.
    is_layer: whether a node of params is a layer, as `is_leaf` of
      `jax.tree.flatten`.  None: whatever is right below the root.
    num_samples: random directions, two or more.
    num_steps: of each Krylov space.
    count: how many eigenvalues at either end.

  Returns:
    `LayerCurvature`.

  Raises:
    ValueError: there are no layers, or what an estimator raises.

  >>> loss = lambda p: jnp.sum(p["a"] ** 2) - 3 * jnp.sum(p["b"] ** 2)
  >>> curvature = layer_curvature(
  ...   loss, {"a": jnp.ones(4), "b": jnp.ones(3)}, jax.random.key(0)
  ... )
  >>> print([round(float(t.value), 4) for t in curvature.traces])
  [8.0, -18.0]
  >>> print([round(float(e.values[0]), 4) for e in curvature.largest])
  [2.0, -6.0]
  """
  if is_layer is None:
    is_layer = lambda node: node is not params
  structure: Any
  entries, structure = jax.tree.flatten_with_path(params, is_leaf=is_layer)
  if not entries:
    raise ValueError("params has no layers: it is an empty pytree.")
  layers = [layer for _, layer in entries]
  results: list[Any] = []
  for i, own in enumerate(jax.random.split(key, len(layers))):

    def loss_of_layer(layer: Any, i: int = i) -> jax.Array:
      return loss_fn(
        structure.unflatten([*layers[:i], layer, *layers[i + 1 :]])
      )

    # One decomposition after the other: several in a program can wait for each
    # other's threads forever, in jaxlib on CPU.
    before = results[-1] if results else ()
    own = _after(own, before)
    product = jax.linearize(jax.grad(loss_of_layer), layers[i])[1]
    results.append(
      _figures(product, layers[i], own, num_samples, num_steps, count)
    )
  sizes = [sum(np.size(x) for x in jax.tree.leaves(layer)) for layer in layers]
  return LayerCurvature(
    Names(
      jax.tree_util.keystr(path, simple=True, separator=".")
      for path, _ in entries
    ),
    Names(sizes),
    *zip(*results, strict=True),
  )


def _after(key: jax.Array, results: Any) -> jax.Array:
  """The key, but not before there are the results."""
  data = jax.random.key_data(key)
  return jax.random.wrap_key_data(lax.optimization_barrier((data, results))[0])


def _figures(
  product: Callable[[Any], Any],
  layer: Any,
  key: jax.Array,
  num_samples: int,
  num_steps: int,
  count: int,
) -> tuple[Estimate, Eigenvalues, Eigenvalues, SpectralDensity]:
  keys = jax.random.split(key, 3)
  size = sum(np.size(leaf) for leaf in jax.tree.leaves(layer))
  top = top_eigenvalues(max(num_steps, count), min(count, size))
  negative = lambda tangent: jax.tree.map(jnp.negative, product(tangent))
  trace = hutchinson(num_samples)(keys[0], product, layer)
  largest = top(keys[1], product, layer)
  below = top(_after(keys[1], largest), negative, layer)
  smallest = below._replace(values=-below.values)
  density = spectral_density(num_steps, num_samples)(
    _after(keys[2], smallest), product, layer
  )
  return trace, largest, smallest, density
