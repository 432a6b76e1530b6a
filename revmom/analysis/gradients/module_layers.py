"""Every call of a submodule of a Flax module, Linen or NNX, as a layer.

The user's code does not change.  Linen offers interception of all calls of
`__call__`; NNX does not, so in a copy of the module every submodule gets a
subclass of its class, whose `__call__` is watched.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.core import DenyList
from jax.extend.core import get_opaque_trace_state

from revmom.analysis.gradients import norms
from revmom.analysis.gradients.linear_maps import is_float

Path = tuple[Any, ...]
# Sees a submodule's path, the submodule, its call and the call's arguments.
Watcher = Callable[[Path, Any, Callable[..., Any], tuple, dict], Any]


class Tapped(NamedTuple):
  """A network with a tap behind each of its layers."""

  names: tuple[str, ...]
  run: Callable[[Any, jax.Array, Any], Any]  # params, tokens, x -> result
  params: Any
  parameter_sums: Callable[[Any], jax.Array]  # params -> [L, 6], see norms


class ModuleCalls(NamedTuple):
  """A module whose calls can be watched.

  Attributes:
    params: its parameters, a nested dict by path.
    run: (params, x, watcher) -> result.
    submodule: (path, submodule) -> a function of the arguments of its call,
      which can outlive the run in which the submodule was met.
  """

  params: Any
  run: Callable[[Any, Any, Watcher], Any]
  submodule: Callable[[Path, Any], Callable[..., Any]]


def module_calls(
  module: Any, variables: Any, options: dict[str, Any]
) -> ModuleCalls:
  """The calls of a module, of Linen or of NNX.

  Raises:
    ValueError: the variables are not those of the module.
  """
  if isinstance(module, linen.Module):
    return _linen_calls(module, variables, options)
  return _nnx_calls(module, variables, options)


def arguments(x: Any) -> tuple[Any, ...]:
  """What a module is called with: the elements of a tuple, or x alone."""
  return x if type(x) is tuple else (x,)


def _linen_calls(
  module: linen.Module, variables: Any, options: dict[str, Any]
) -> ModuleCalls:
  if not isinstance(variables, Mapping) or "params" not in variables:
    raise ValueError(
      f"a Linen module needs the variables that its init returns, a dict with "
      f"'params'; got {type(variables).__name__}."
    )
  others = {k: v for k, v in variables.items() if k != "params"}
  # Statistics may be updated, as in training; the result is thrown away.
  mutable = DenyList("params")

  def run(params: Any, x: Any, watcher: Watcher) -> Any:
    def intercept(call, args, kwargs, context):
      if context.method_name != "__call__":
        return call(*args, **kwargs)
      return watcher(context.module.path, context.module, call, args, kwargs)

    with linen.intercept_methods(intercept):
      return module.apply(
        {"params": params, **others}, *arguments(x), mutable=mutable, **options
      )[0]

  def submodule(path: Path, met: linen.Module) -> Callable[..., Any]:
    unbound = met.unbind()[0]
    below = {name: _at(tree, path) for name, tree in variables.items()}
    rngs = {"rngs": options["rngs"]} if "rngs" in options else {}
    return lambda *args, **kwargs: unbound.apply(
      below, *args, mutable=mutable, **rngs, **kwargs
    )[0]

  return ModuleCalls(variables["params"], run, submodule)


def _at(tree: Any, path: Path) -> Any:
  """What is below a path; nothing is an empty dict."""
  for name in path:
    tree = tree.get(name, {}) if isinstance(tree, Mapping) else {}
  return tree


class _Watched:
  """A submodule's path and who watches it; NNX takes it for a constant."""

  def __init__(self, path: Path, watcher: Watcher):
    self.path, self.watcher = path, watcher


@functools.lru_cache
def _watched_class(original: type) -> type:
  """A class whose calls are watched, once for each class of modules."""

  def call(self: Any, *args: Any, **kwargs: Any) -> Any:
    watched = self._revmom_watched
    run = functools.partial(original.__call__, self)
    return watched.watcher(watched.path, self, run, args, kwargs)

  body = {"__call__": call, "__module__": original.__module__}
  return type(original)(original.__name__, (original,), body)


def _nnx_calls(
  module: nnx.Module, params: Any, options: dict[str, Any]
) -> ModuleCalls:
  parts: Any = nnx.split(module, nnx.Param, ...)
  definition, own, rest = parts
  structure: Any = jax.tree.structure
  if params is None:
    params = own
  elif structure(params) != structure(own):
    raise ValueError(
      "params of an NNX module are nnx.state(module, nnx.Param), or None for "
      f"its own; got a {type(params).__name__} of another structure."
    )

  def copy(params: Any) -> Any:
    # Without the map, the copy would share the module's variables.
    own, others = jax.tree.map(lambda leaf: leaf, (params, rest))
    return nnx.merge(definition, own, others)

  def run(params: Any, x: Any, watcher: Watcher) -> Any:
    watched = copy(params)
    child: Any
    for path, child in list(nnx.iter_modules(watched)):
      kind: Any = type(child)
      if callable(child):
        object.__setattr__(child, "__class__", _watched_class(kind))
        child._revmom_watched = _Watched(path, watcher)
    return watched(*arguments(x), **options)

  def submodule(path: Path, met: nnx.Module) -> Callable[..., Any]:
    del met  # its variables may have changed
    return lambda *args, **kwargs: dict(nnx.iter_modules(copy(params)))[path](
      *args, **kwargs
    )

  return ModuleCalls(params, run, submodule)


def _name(path: Path, module: Any) -> str:
  kind = type(module).__name__
  return f"{'.'.join(map(str, path))} {kind}".strip()


def called(calls: ModuleCalls, x: Any) -> dict[Path, str]:
  """Path -> name of all submodules that a run calls, as they return.

  Nothing is computed.
  """
  names: dict[Path, str] = {}

  def watcher(path, module, call, args, kwargs):
    result = call(*args, **kwargs)
    names.setdefault(path, _name(path, module))
    return result

  jax.eval_shape(
    lambda params, x: calls.run(params, x, watcher), calls.params, x
  )
  return names


def tapped(
  module: Any, variables: Any, x: Any, options: dict[str, Any]
) -> Tapped:
  """A tap behind every call of every submodule, and of the module itself."""
  calls = module_calls(module, variables, options)
  names = called(calls, x)
  rows = {path: i for i, path in enumerate(names)}

  def run(params: Any, tokens: jax.Array, x: Any) -> Any:
    def watcher(path, module, call, args, kwargs):
      result = call(*args, **kwargs)
      return norms.tap(result, tokens[rows[path]])

    return calls.run(params, x, watcher)

  def parameter_sums(params: Any) -> jax.Array:
    """Those below a path belong to it."""
    leaves = [
      (_keys(where), norms.sums(leaf))
      for where, leaf in jax.tree.leaves_with_path(params)
    ]
    none = jnp.zeros(norms.SUMS)
    return jnp.stack(
      [
        sum((s for where, s in leaves if where[: len(path)] == path), none)
        for path in names
      ]
    )

  return Tapped(tuple(names.values()), run, calls.params, parameter_sums)


def _keys(path: Path) -> Path:
  """The names and numbers of a path in a pytree."""
  return tuple(
    getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))
    for key in path
  )


class Call(NamedTuple):
  """A call of a submodule, as a function of its arguments."""

  name: str
  function: Callable[[Any], Any]  # (args, kwargs) -> result
  arguments: Any  # (args, kwargs)


def inputs_of_calls(calls: ModuleCalls, x: Any) -> list[Call]:
  """The first call of each submodule with floats in and out, as they return.

  Calls within transformations have no arguments outside and are left out.
  """
  found: dict[Path, Call] = {}
  outside = _trace()

  def watcher(path, module, call, args, kwargs):
    result = call(*args, **kwargs)
    ends = (args, kwargs), result
    known = path in found or _trace() != outside
    if not known and all(map(_has_floats, ends)):
      function = calls.submodule(path, module)
      found[path] = Call(
        _name(path, module),
        lambda both: function(*both[0], **both[1]),
        (args, kwargs),
      )
    return result

  calls.run(calls.params, x, watcher)
  return list(found.values())


def _trace() -> Any:
  """What differs within a transformation from what is outside of it."""
  return get_opaque_trace_state(convention="flax")


def _has_floats(tree: Any) -> bool:
  return any(map(is_float, jax.tree.leaves(tree)))
