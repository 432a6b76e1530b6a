"""How JAX writes calls, loops and branches, in each supported version.

Names of primitives and of their parameters are JAX's own and change with it.
Of primitives that hold programs they are read here and nowhere else.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Primitive

CHECKPOINT = "remat2"
CUSTOM_JVP = "custom_jvp_call"
CUSTOM_VJP = "custom_vjp_call"
CUSTOM_VMAP = "custom_vmap_call"
HIGH = "call_hi_primitive"  # an operation with rules of its own, since jax 0.12
# Calls that bring a derivative or a batching rule, which inlining loses.
RULES = frozenset([CUSTOM_JVP, CUSTOM_VJP, CUSTOM_VMAP, HIGH])
# What runs a program once, on all of its operands.
CALLS = RULES | frozenset(
  [CHECKPOINT, "closed_call", "composite", "eval_jaxpr", "jit"]
)


class Parameters(dict[str, Any]):
  """Parameters by their names; one that is missing is a ValueError.

  >>> Parameters("scan", {"length": 3})["width"]
  Traceback (most recent call last):
  ...
  ValueError: jax ... writes `scan` with parameters ['length'], a form that ...
  """

  def __init__(self, primitive: str, params: Mapping[str, Any]):
    super().__init__(params)
    self.primitive = primitive

  def __missing__(self, name: str) -> Any:
    raise _unknown(self.primitive, f"parameters {sorted(self)}")


class Written(Protocol):
  """An equation, of a jaxpr or of a program."""

  @property
  def primitive(self) -> Primitive: ...

  @property
  def params(self) -> Mapping[str, Any]: ...


def called(equation: Written) -> ClosedJaxpr:
  """The program of a call; its inputs are all of the operands.

  Of what brings rules of its own it is the function itself.

  Raises:
    ValueError: this JAX writes calls in a way that is not known.

  >>> closed = jax.make_jaxpr(jax.jit(lambda x: 2 * x))(1.0)
  >>> called(closed.jaxpr.eqns[0]).jaxpr.eqns[0].primitive
  mul
  """
  params = _parameters(equation)
  if equation.primitive.name == HIGH:
    return _expansion(params["_prim"])
  names = [n for n in ("jaxpr", "call_jaxpr", "call") if n in params]
  return as_closed(params[names[0] if names else "jaxpr"])


def _expansion(primitive: Any) -> ClosedJaxpr:
  """The program of a `jax.experimental.hijax.HiPrim`."""
  try:
    leaves: list[Any]
    structure: Any
    leaves, structure = jax.tree.flatten(primitive.in_avals)
    flat = lambda *leaves: jax.tree.leaves(
      primitive.expand(*structure.unflatten(leaves))
    )
    return jax.make_jaxpr(flat)(*leaves)
  except (AttributeError, NotImplementedError, TypeError) as error:
    raise _unknown(HIGH, f"{type(primitive).__name__}: {error}") from error


def as_closed(jaxpr: Jaxpr | ClosedJaxpr) -> ClosedJaxpr:
  """Closes a jaxpr without constants, such as that of a checkpoint."""
  return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


def policy_of(equation: Written) -> Any:
  """What a checkpoint that is no derivative is to keep; None of all others.

  Raises:
    ValueError: this JAX writes checkpoints in a way that is not known.

  >>> policy = jax.checkpoint_policies.everything_saveable
  >>> function = jax.checkpoint(lambda x: 2 * x, policy=policy)
  >>> policy_of(jax.make_jaxpr(function)(1.0).jaxpr.eqns[0]) is policy
  True
  """
  if equation.primitive.name != CHECKPOINT:
    return None
  params = _parameters(equation)
  return None if params["differentiated"] else params["policy"]


class ScanForm(NamedTuple):
  """A scan, whose operands are constants, then the carry, then the xs."""

  body: ClosedJaxpr
  constants: int
  carry: int
  length: int
  reverse: bool
  unroll: int


class WhileForm(NamedTuple):
  """A while loop: its condition's constants, its body's, then the carry."""

  condition: ClosedJaxpr
  condition_constants: int
  body: ClosedJaxpr
  body_constants: int


def scan_form(equation: Written) -> ScanForm:
  """What a scan repeats, how often, and which operands are what.

  Raises:
    ValueError: this JAX writes scans in a way that is not known.

  >>> closed = jax.make_jaxpr(
  ...   lambda x, ys: jax.lax.scan(lambda c, y: (c + y, None), x, ys)[0]
  ... )(1.0, jax.numpy.ones(3))
  >>> form = scan_form(closed.jaxpr.eqns[0])
  >>> form.constants, form.carry, form.length
  (0, 1, 3)
  """
  params = _parameters(equation)
  rest = (params[name] for name in ("length", "reverse", "unroll"))
  return ScanForm(params["jaxpr"], *_scan_counts(params), *rest)


def _scan_counts(params: Parameters) -> tuple[int, int]:
  if "num_consts" in params:  # jax 0.10
    return params["num_consts"], params["num_carry"]
  # Since jax 0.12 a tree of the operands: (constants, carry, xs).
  tree = params["ft_in"]
  try:
    constants, carry, _ = map(len, tree.unpack())
  except (AttributeError, TypeError, ValueError) as error:
    raise _unknown(params.primitive, f"ft_in={tree!r}") from error
  return constants, carry


def narrowed_scan(
  equation: Written,
  body: ClosedJaxpr,
  used: Sequence[bool],
  wanted: Sequence[bool],
) -> Parameters:
  """The parameters of a scan of a body with fewer operands and outputs."""
  form, params = scan_form(equation), _parameters(equation)
  changes: dict[str, Any]
  if "num_consts" in params:
    changes = {
      "num_consts": sum(used[: form.constants]),
      "num_carry": sum(wanted[: form.carry]),
    }
  else:
    try:
      changes = {
        "ft_in": params["ft_in"].filter_with_mask(list(used)),
        "ft_out": params["ft_out"].filter_with_mask(list(wanted)),
      }
    except (AttributeError, TypeError) as error:
      raise _unknown("scan", f"parameters {sorted(params)}") from error
  return Parameters("scan", {**params, "jaxpr": body, **changes})


# The parameters of a while loop that make up its form.
_WHILE = "cond_jaxpr", "cond_nconsts", "body_jaxpr", "body_nconsts"


def while_form(equation: Written) -> WhileForm:
  """What a while loop repeats, until when, and which operands are what.

  Raises:
    ValueError: this JAX writes while loops in a way that is not known.

  >>> closed = jax.make_jaxpr(
  ...   lambda x: jax.lax.while_loop(lambda c: c < x, lambda c: c * 2, 1.0)
  ... )(8.0)
  >>> form = while_form(closed.jaxpr.eqns[0])
  >>> form.condition_constants, form.body_constants
  (1, 0)
  """
  params = _parameters(equation)
  return WhileForm(*(params[name] for name in _WHILE))


def narrowed_while(equation: Written, form: WhileForm) -> Parameters:
  """The parameters of a while loop of this form."""
  changes = dict(zip(_WHILE, form, strict=True))
  return Parameters("while", {**equation.params, **changes})


def branches_of(equation: Written) -> tuple[ClosedJaxpr, ...]:
  """The branches of a cond, which its first operand numbers.

  Raises:
    ValueError: this JAX writes branches in a way that is not known.

  >>> closed = jax.make_jaxpr(
  ...   lambda k, x: jax.lax.switch(k, [jax.numpy.sin, jax.numpy.cos], x)
  ... )(0, 1.0)
  >>> len(branches_of(closed.jaxpr.eqns[-1]))
  2
  """
  return tuple(_parameters(equation)["branches"])


def narrowed_cond(
  equation: Written, branches: Sequence[ClosedJaxpr]
) -> Parameters:
  """The parameters of a cond with these branches."""
  return Parameters("cond", {**equation.params, "branches": tuple(branches)})


def _parameters(equation: Written) -> Parameters:
  return Parameters(equation.primitive.name, equation.params)


def _unknown(primitive: str, got: str) -> ValueError:
  return ValueError(
    f"jax {jax.__version__} writes `{primitive}` with {got}, a form that "
    "revmom does not know; use a version of JAX that revmom supports, or "
    "report this one."
  )
