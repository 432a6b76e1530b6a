"""States as plain dicts of arrays, which Orbax and NumPy can save.

Beside the arrays of a state stands what describes it, as the bytes of JSON: a
version, the optimizer and its grids, the parameters, and in what containers
the arrays belong.  Arrays without elements, which Orbax refuses, are described
and left out.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from revmom.exact.bit_buffer import BitBuffer
from revmom.exact.capacities import Schedule
from revmom.exact.pytree import is_static
from revmom.exact.residue import Margin, Residues
from revmom.optimizers.checks import check_factors, check_slots
from revmom.optimizers.packing import Group, Packing
from revmom.optimizers.reversible import ReversibleOptimizer, check_optimizer
from revmom.optimizers.state import State
from revmom.steps.leaf import Leaf
from revmom.training.environment import Fingerprint
from revmom.training.plans import Plan
from revmom.training.run_state import RunState
from revmom.training.stepper import Stepper
from revmom.training.stepper_state import StepperState

VERSION = 1
_ABOUT = "about"
_STATES = {kind.__name__: kind for kind in (State, RunState, StepperState)}
_TUPLES = {
  kind.__name__: kind for kind in (Leaf, BitBuffer, Schedule, Residues, Margin)
}


def to_state_dict(optimizer: Any, state: State) -> dict[str, jax.Array]:
  """The arrays of a state, and one of bytes that says what they are.

  Args:
    optimizer: that made the state, or the `Stepper` or the transformation of
      `as_optax` that has it.
    state: of `optimizer.init` or a step, of a `Stepper`, of `as_optax`, or of
      what `revmom.train` or `revmom.rewind` returned.

  Returns:
    A flat dict of arrays, for Orbax's `StandardSave` or `numpy.savez`.  They
    keep their sharding.

  Raises:
    ValueError: what was given is no state, or of another optimizer.

  >>> import revmom
  >>> optimizer, params = revmom.adamw(0.1), {"w": jnp.ones(3)}
  >>> state = optimizer.init(params, num_steps=5)
  >>> stored = revmom.to_state_dict(optimizer, state)
  >>> again = revmom.from_state_dict(optimizer, stored, params)
  >>> jax.tree.all(jax.tree.map(jnp.array_equal, state, again))
  True
  """
  optimizer = _optimizer("to_state_dict", optimizer)
  kind = type(state).__name__
  if type(state) is not _STATES.get(kind):
    raise ValueError(
      f"to_state_dict got a {kind}; pass the state of an optimizer, a Stepper, "
      "as_optax or a run, `run.state`."
    )
  check_slots(optimizer.resolve_for(state), state.leaves)
  arrays: dict[str, jax.Array] = {}
  fields = {
    name: _described(getattr(state, name), arrays) for name in _fields(state)
  }
  about = {
    "version": VERSION,
    "kind": kind,
    "optimizer": _of_optimizer(optimizer, state.like_params()),
    "params": _of_params(state.like_params()),
    "packing": state.packing,
    "steps": state.steps,
    "fields": fields,
  }
  for name in ("plan", "checksum_every", "residue_bits", "fingerprint"):
    if hasattr(state, name):
      about[name] = getattr(state, name)
  text: Any = np.frombuffer(json.dumps(about).encode(), np.uint8)
  return {_ABOUT: text, **arrays}


def from_state_dict(
  optimizer: Any, stored: Mapping[str, Any], params: Any
) -> Any:
  """The state that `to_state_dict` made a dict of.

  Args:
    optimizer: as there.
    stored: the dict, as it was restored.
    params: of the run, for their structure; or their shapes.

  Raises:
    ValueError: the state is of another version, optimizer, grid or
      parameters, had other factors (momentum, decay), or arrays are missing
      or of other shapes; the message names what differs.
  """
  steps_alone = isinstance(optimizer, Stepper)
  optimizer = _optimizer("from_state_dict", optimizer)
  if _ABOUT not in stored:
    raise ValueError(
      f"from_state_dict got {sorted(stored)[:5]}, without {_ABOUT!r}; pass all "
      "that to_state_dict returned."
    )
  about = json.loads(np.asarray(stored[_ABOUT], np.uint8).tobytes())
  if about["version"] != VERSION:
    raise ValueError(
      f"the state was saved with version={about['version']}, but this revmom "
      f"reads version={VERSION}; read it with the revmom that saved it."
    )
  structure: Any = jax.tree.structure(params)
  _compare("params", about["params"], _of_params(params))
  _compare("optimizer", about["optimizer"], _of_optimizer(optimizer, params))
  groups, shapes = about["packing"]
  kind = _STATES[about["kind"]]
  if steps_alone != (kind is StepperState):
    raise ValueError(
      f"the state was saved as a {about['kind']}; "
      + (
        "a Stepper goes on from the state of a Stepper alone."
        if steps_alone
        else "give from_state_dict the Stepper that made it."
      )
    )
  static: dict[str, Any] = {
    "steps": about["steps"],
    "structure": structure,
    "dtypes": tuple(jnp.dtype(own[2]) for own in about["params"]),
    "packing": Packing(
      tuple(Group(tuple(members), flat) for members, flat in groups),
      tuple(map(tuple, shapes)),
    ),
  }
  for name in ("checksum_every", "residue_bits"):
    if name in about:
      static[name] = about[name]
  if "plan" in about:
    static["plan"] = _plan(about["plan"])
  if "fingerprint" in about:
    static["fingerprint"] = Fingerprint(*about["fingerprint"])
  fields = {name: _made(node, stored) for name, node in about["fields"].items()}
  state = kind(**fields, **static)
  dynamics = optimizer.resolve(params, state.steps, state.packing)
  check_slots(dynamics, state.leaves)
  check_factors(dynamics, state.schedules)
  return state


def _optimizer(where: str, optimizer: Any) -> ReversibleOptimizer:
  own = getattr(optimizer, "optimizer", optimizer)
  check_optimizer(where, own)
  return own


def _fields(state: State) -> list[str]:
  fields = dataclasses.fields(state)
  return [field.name for field in fields if not is_static(field)]


def _of_params(params: Any) -> list:
  """Name, shape and type of each parameter array."""
  return [
    [
      jax.tree_util.keystr(path) or "params",
      list(jnp.shape(leaf)),
      str(jnp.result_type(leaf)),
    ]
    for path, leaf in jax.tree.leaves_with_path(params)
  ]


def _of_optimizer(optimizer: ReversibleOptimizer, params: Any) -> dict:
  """What must be the same: names and grids; factors are in the schedules."""
  parts, shared = optimizer.parts(params)
  return {
    "clip": "clip" in shared,
    "preprocess": optimizer.preprocess is not None,
    "shown_bits": optimizer.shown_bits,
    "parts": [
      {
        "name": type(part).__name__.lower(),
        "arrays": leaves,
        "integer": str(part.roles[0].integer),
        "fraction_bits": {role.name: role.bits for role in part.roles},
      }
      for part, leaves in parts
    ],
  }


def _compare(name: str, then: Any, now: Any) -> None:
  """Raises ValueError for the first difference, with its name."""
  if isinstance(then, dict) and isinstance(now, dict):
    for key in [*then, *(key for key in now if key not in then)]:
      _compare(f"{name}.{key}", then.get(key), now.get(key))
  elif isinstance(then, list) and isinstance(now, list):
    for i, (old, new) in enumerate(zip(then, now, strict=False)):
      _compare(f"{name}[{i}]", old, new)
    if len(then) != len(now):
      raise ValueError(
        f"the state was saved with {len(then)} {name}, but {len(now)} were "
        "given now."
      )
  elif then != now:
    raise ValueError(
      f"the state was saved with {name}={then!r}, but was given {name}={now!r} "
      "now; pass the optimizer and the parameters that it was made with."
    )


def _plan(fields: list) -> Plan:
  *numbers, leading, final = fields
  parts = [None if part is None else _plan(part) for part in (leading, final)]
  return Plan(*numbers, *parts)


def _described(node: Any, arrays: dict[str, jax.Array]) -> Any:
  """The containers of a tree; its arrays are put into the dict."""
  if node is None:
    return None
  if isinstance(node, list):
    return [_described(own, arrays) for own in node]
  if isinstance(node, dict):
    return {"dict": {k: _described(own, arrays) for k, own in node.items()}}
  kind = type(node).__name__
  if type(node) is _TUPLES.get(kind):
    own = {k: _described(v, arrays) for k, v in node._asdict().items()}
    return {kind: own}
  name = f"array_{len(arrays)}"
  if not node.size:
    name = "empty"
  else:
    arrays[name] = node
  return {"array": [name, list(node.shape), str(node.dtype)]}


def _made(node: Any, stored: Mapping[str, Any]) -> Any:
  """Undoes `_described`."""
  if node is None:
    return None
  if isinstance(node, list):
    return [_made(own, stored) for own in node]
  ((kind, own),) = node.items()
  if kind == "array":
    name, shape, dtype = own
    return _array(name, shape, dtype, stored)
  made = {name: _made(part, stored) for name, part in own.items()}
  return made if kind == "dict" else _TUPLES[kind](**made)


def _array(
  name: str, shape: list[int], dtype: str, stored: Mapping[str, Any]
) -> jax.Array:
  if name == "empty":
    return jnp.zeros(shape, dtype)
  if name not in stored:
    raise ValueError(
      f"the array {name!r} is missing; restore all that to_state_dict gave."
    )
  array = jnp.asarray(stored[name])
  if list(array.shape) != shape or str(array.dtype) != dtype:
    raise ValueError(
      f"the array {name!r} was saved as {dtype}{shape}, but is now "
      f"{array.dtype}{list(array.shape)}; 64-bit types need JAX_ENABLE_X64=1."
    )
  return array
