"""Singular values of the Jacobian of every submodule of a Flax module."""

from typing import Any

import jax

from revmom.analysis.gradients import linear_maps, module_layers
from revmom.analysis.gradients.layer_spectrum import LayerSpectra
from revmom.analysis.gradients.linear_maps import linear_map, measured
from revmom.analysis.gradients.text import Names


def module_spectra(
  module: Any,
  params: Any,
  x: Any,
  *,
  key: jax.Array | None = None,
  **options: Any,
) -> LayerSpectra:
  """Singular values of the Jacobian of every submodule of a Flax module.

  The Jacobian of a submodule is that of all floats that it returns by all that
  it is called with, in its first call.  Submodules without either are left out,
  and so are those that are called within a loop or another transformation,
  where they have many Jacobians.  Random masks are drawn anew.

  Args:
    module, params, x, **options: as of `gradient_flow`.
    key: of the random directions of estimates; None is key 0.

  Returns:
    `LayerSpectra` without bounds, with one product, that of the whole.

  Raises:
    ValueError: as `gradient_flow`; x has no floats.
  """
  key = jax.random.key(0) if key is None else key
  calls = module_layers.module_calls(module, params, options)
  inputs = module_layers.inputs_of_calls(calls, x)
  keys = jax.random.split(key, len(inputs) + 1)
  whole = linear_map(lambda x: calls.run(calls.params, x, _unwatched), x)[1]
  maps = [
    measured(linear_map(call.function, call.arguments)[1], own)
    for call, own in zip(inputs, keys, strict=False)
  ]
  both = linear_maps.spectra([*maps, measured(whole, keys[-1])])
  count = len(maps)
  return LayerSpectra(
    Names(call.name for call in inputs),
    jax.tree.map(lambda leaf: leaf[:count], both),
    jax.tree.map(lambda leaf: leaf[count:], both),
    None,
    None,
  )


def _unwatched(
  path: Any, module: Any, call: Any, args: Any, kwargs: Any
) -> Any:
  del path, module
  return call(*args, **kwargs)
