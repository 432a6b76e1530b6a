"""What is known of JAX's primitives: how their outputs meet their operands."""

from jax.extend.core import JaxprEqn

from revmom.jacobian.program.control_flow import (
  CALLS,
  CUSTOM_VJP,
  RULES,
  called,
)
from revmom.jacobian.program.declarations import mark_of
from revmom.jacobian.program.equations import Equation, Program, inline

ELEMENTWISE = frozenset(
  "abs acos acosh add add_any asin asinh atan atan2 atanh bessel_i0e "
  "bessel_i1e cbrt clamp convert_element_type copy copy_p cos cosh "
  "digamma div erf erf_inv erfc exp exp2 expm1 igamma igammac "
  "integer_pow lgamma log log1p log2 logistic max min mul name neg "
  "one_minus_square polygamma polynomial pow pvary reduce_precision "
  "regularized_incomplete_beta rem rsqrt select_n "
  "sharding_constraint sin sinh sqrt square sub tan tanh zeta "
  # They have no derivative, but custom derivatives may be made of them.
  "and ceil eq eq_to floor ge gt is_finite le le_to lt lt_to ne nextafter not "
  "or round sign stop_gradient xor".split()
)

# Elements stay in their order when the array is read row by row.
IN_ORDER = frozenset(["expand_dims", "reshape", "squeeze"])

# Every output element is an element of an operand.  The operands that tell
# which one: those from the first to the second number on.
INDEXING = {
  "broadcast_in_dim": (1, None),
  "concatenate": (None, None),
  "dynamic_slice": (1, None),
  "dynamic_update_slice": (2, None),
  "gather": (1, None),
  "pad": (None, None),
  "rev": (None, None),
  "scatter": (1, 2),
  "select_n": (0, 1),
  "slice": (None, None),
  "split": (None, None),
  "stack": (None, None),
  "tile": (None, None),
  "transpose": (None, None),
  "unstack": (None, None),
}

SCATTERS = frozenset(
  ["scatter-add", "scatter-max", "scatter-min", "scatter-mul", "scatter-sub"]
)
REDUCTIONS = frozenset(
  ["reduce_max", "reduce_min", "reduce_prod", "reduce_sum"]
)
CUMULATIVE = frozenset(
  ["cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"]
)
IDENTITIES = frozenset(["device_put", "optimization_barrier"])

# Zero where their first operand is.
KEEP_ZEROS = frozenset(
  "abs asin asinh atan atanh bessel_i1e cbrt ceil convert_element_type copy "
  "copy_p div erf erf_inv expm1 floor imag log1p name neg pvary "
  "real reduce_precision rem round sharding_constraint sign sin sinh sqrt "
  "square stop_gradient tan tanh".split()
)
KNOWN = (
  ELEMENTWISE
  | IN_ORDER
  | SCATTERS
  | REDUCTIONS
  | CUMULATIVE
  | IDENTITIES
  | frozenset(INDEXING)
  | frozenset(["conv_general_dilated", "dot_general", "sort"])
)


def keep(equation: JaxprEqn) -> bool:
  """Keeps rules for forward mode and `vmap`, and calls with a log-determinant.

  Custom derivatives were written to be exact where that of the function is not.
  """
  name, mark = equation.primitive.name, mark_of(equation)
  if mark is not None:
    return mark.log_det is not None
  return name in RULES and name != CUSTOM_VJP


def is_call(equation: Equation) -> bool:
  """Whether the equation is one of those that `keep` keeps."""
  return equation.name in CALLS


def inside(equation: Equation) -> Program:
  """The program of a call."""
  return inline(called(equation), keep)


def is_known(equation: Equation) -> bool:
  """Whether there is a rule for the equation's pattern."""
  if is_call(equation):
    return all(map(is_known, inside(equation).equations))
  return equation.name in KNOWN
