"""The conformance kit passes what is right and finds every planted fault."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.jacobian import BijectionError, check_bijection

WEIGHTS = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)


class LogDet(NamedTuple):
  value: jax.Array
  sign: jax.Array


def normal(key):
  return jax.random.normal(key)


def vector(key):
  return jax.random.normal(key, (3,))


def halves(key):
  left, right = jax.random.split(key)
  return {"a": vector(left), "b": vector(right)}


def scales(s):
  return jnp.tanh(WEIGHTS @ s["a"])


def coupling(s):
  return {"a": s["a"], "b": s["b"] * jnp.exp(scales(s)) + s["a"]}


def coupling_inverse(s):
  return {"a": s["a"], "b": (s["b"] - s["a"]) * jnp.exp(-scales(s))}


def coupling_log_det(s):
  return jnp.sum(scales(s))


def tanh_log_det(x):
  return jnp.sum(2 * (np.log(2) - x - jax.nn.softplus(-2 * x)))


def sinh_log_det(x):
  return jnp.sum(jnp.log(jnp.cosh(x)))


def failures(*args, **options):
  with pytest.raises(BijectionError) as caught:
    check_bijection(*args, num_points=8, **options)
  names = {check.name for check in caught.value.report.failed}
  assert all(name in str(caught.value) for name in names)
  return names, str(caught.value)


@pytest.mark.slow
def test_a_coupling_of_pytrees_passes():
  report = check_bijection(
    coupling,
    coupling_inverse,
    coupling_log_det,
    halves,
    inverse_log_det=lambda s: -jnp.sum(scales(s)),
  )
  assert not report.failed and report.size == 6 and report.dtype == "float64"
  status = {check.name: check.status for check in report.checks}
  skipped = {name for name, value in status.items() if value == "skipped"}
  assert skipped == {"volume preserving", "sign"}
  assert status["change of measure"] == "passed"
  assert "float64" in str(report)


@pytest.mark.slow
def test_a_stable_tanh_passes_to_the_edge():
  edges = [jnp.full(3, 8.0), jnp.array([-15.0, 0.0, 15.0])]
  check_bijection(jnp.tanh, jnp.arctanh, tanh_log_det, vector, edges=edges)


@pytest.mark.slow
def test_one_precision_alone():
  def through_float32(x):
    return jnp.sinh(x.astype(jnp.float32)).astype(x.dtype)

  arguments = (through_float32, jnp.arcsinh, sinh_log_det, normal)
  names, _ = failures(*arguments)
  assert "f_inverse(f(x))" in names
  report = check_bijection(*arguments, dtype=jnp.float32)
  assert report.dtype == "float32"


@pytest.mark.slow
def test_signs():
  def log_det(sign):
    return lambda x: LogDet(sinh_log_det(x), sign)

  inverse = lambda y: jnp.arcsinh(-y)
  arguments = (lambda x: -jnp.sinh(x), inverse)
  # Three numbers change their sign.
  check_bijection(*arguments, log_det(-1.0), vector, num_points=8)
  assert failures(*arguments, log_det(1.0), vector)[0] == {"sign"}


@pytest.mark.slow
def test_wrong_sign_of_the_log_det():
  names, message = failures(
    coupling, coupling_inverse, lambda s: -coupling_log_det(s), halves
  )
  assert {"log_det", "change of measure", "gradient of log_det"} <= names
  assert "the sign is wrong" in message


@pytest.mark.slow
def test_dropped_factor():
  names, message = failures(
    coupling, coupling_inverse, lambda s: 0.5 * coupling_log_det(s), halves
  )
  assert {"log_det", "gradient of log_det"} <= names
  assert "0.5 times" in message


@pytest.mark.slow
def test_constant_off():
  names, message = failures(
    coupling, coupling_inverse, lambda s: coupling_log_det(s) + 1e-6, halves
  )
  assert names == {"log_det"}
  assert "off by 1e-06" in message


@pytest.mark.slow
def test_wrong_in_the_inverse_only():
  log_det = coupling_log_det
  names, _ = failures(
    coupling, coupling_inverse, log_det, halves, inverse_log_det=log_det
  )
  assert names == {"inverse_log_det"}


@pytest.mark.slow
@pytest.mark.parametrize(
  "log_det",
  [
    lambda x: jnp.where(jnp.abs(x) > 7, 0.0, tanh_log_det(x)),
    lambda x: jnp.log(1 - jnp.tanh(x) ** 2),
  ],
  ids=["clipped", "minus infinity"],
)
def test_wrong_at_the_edge_only(log_det):
  arguments = (jnp.tanh, jnp.arctanh, log_det, normal)
  report = check_bijection(*arguments, num_points=8)
  assert not report.failed
  edges = [jnp.array(8.0), jnp.array(20.0)]
  names, _ = failures(*arguments, edges=edges)
  assert names & {"log_det", "log_det is finite"}


def test_not_finite_at_the_edge():
  names, message = failures(
    jnp.exp, jnp.log, lambda x: x, normal, edges=[jnp.array(-800.0)]
  )
  assert "f_inverse is finite" in names
  assert "got [-inf] at point 8" in message


def test_wrong_branch_of_the_inverse():
  names, _ = failures(
    lambda x: x * x, jnp.sqrt, lambda x: jnp.log(2 * jnp.abs(x)), normal
  )
  assert "f_inverse(f(x))" in names
  assert "f(f_inverse(y))" not in names


def test_log_det_right_only_at_zero():
  # sinh has slope 1 at 0.
  names, _ = failures(jnp.sinh, jnp.arcsinh, lambda x: 0 * x, normal)
  assert "log_det" in names
  with pytest.raises(ValueError, match="0 at all 2 samples.*sample from else"):
    tiny = lambda key: 1e-9 * normal(key)
    check_bijection(jnp.sinh, jnp.arcsinh, lambda x: 0 * x, tiny, num_points=2)


@pytest.mark.slow
def test_volume_preserving():
  shear = lambda s: {"a": s["a"], "b": s["b"] + scales(s)}
  back = lambda s: {"a": s["a"], "b": s["b"] - scales(s)}
  zero = lambda s: 0 * jnp.sum(s["a"])
  with pytest.raises(ValueError, match="volume_preserving=True"):
    check_bijection(shear, back, zero, halves, num_points=2)
  check_bijection(
    shear, back, zero, halves, volume_preserving=True, num_points=4
  )
  names, _ = failures(
    coupling, coupling_inverse, zero, halves, volume_preserving=True
  )
  assert "volume preserving" in names


def test_not_mappable_or_not_traceable():
  def by_branch(x):
    return jnp.sinh(x) if x > 0 else jnp.sinh(x)

  names, message = failures(by_branch, jnp.arcsinh, sinh_log_det, normal)
  assert names == {"f under jit and vmap"}
  assert "TracerBoolConversionError" in message

  def unmapped(x):
    return jax.pure_callback(np.sinh, jax.ShapeDtypeStruct((), x.dtype), x)

  names, message = failures(unmapped, jnp.arcsinh, sinh_log_det, normal)
  assert names == {"f under jit and vmap"}
  assert "vmap raised" in message


def test_an_unmapped_sum_over_the_batch():
  # Right for one example, wrong for several at once.
  @jax.custom_batching.custom_vmap
  def shifted(x):
    return jnp.sinh(x)

  @shifted.def_vmap
  def _(size, mapped, x):
    return jnp.sinh(x) + jnp.sum(x) * 1e-3, True

  names, _ = failures(shifted, jnp.arcsinh, sinh_log_det, normal)
  assert names == {"f under jit and vmap"}


def test_wrong_derivative():
  # All of autodiff is deceived; differences and volumes are not.
  @jax.custom_jvp
  def tripled(x):
    return 3 * x

  tripled.defjvp(lambda x, dx: (3 * x[0], 2 * dx[0]))
  names, _ = failures(
    tripled, lambda y: y / 3, lambda x: jnp.full_like(x, np.log(2)), normal
  )
  assert {"central differences of f", "change of measure"} <= names


def test_wrong_gradient_of_the_log_det():
  @jax.custom_jvp
  def log_det(x):
    return jnp.log(jnp.cosh(x))

  log_det.defjvp(lambda x, dx: (log_det(x[0]), 0.5 * jnp.tanh(x[0]) * dx[0]))
  names, _ = failures(jnp.sinh, jnp.arcsinh, log_det, normal)
  assert names == {"gradient of log_det"}


def test_wrong_types_and_sizes():
  names, message = failures(
    jnp.sinh, jnp.arcsinh, lambda x: sinh_log_det(x).astype("float32"), normal
  )
  assert names == {"log_det under jit and vmap"}
  assert "got float32, expected float64" in message
  names, message = failures(
    lambda x: jnp.stack([x, x]), lambda y: y[0], lambda x: x, normal
  )
  assert names == {"size"} and "got 2, expected 1" in message
  names, message = failures(jnp.sinh, jnp.arcsinh, lambda x: x, vector)
  assert "expected a scalar" in message
  names, message = failures(
    coupling, lambda s: list(s.values()), coupling_log_det, halves
  )
  assert names == {"structure"}


def test_drift_of_float32():
  def log_det(x):
    # Loses everything in float32, little in float64.
    return jnp.log(jnp.cosh(x)) + (x + 1e6) - 1e6 - x

  names, _ = failures(jnp.sinh, jnp.arcsinh, log_det, normal)
  assert names == {"log_det in float32"}


def test_bad_input():
  arguments = (jnp.sinh, jnp.arcsinh, sinh_log_det)
  with pytest.raises(ValueError, match="leaf of int32, expected floats"):
    check_bijection(*arguments, lambda key: jnp.arange(3, dtype="int32"))
  with pytest.raises(ValueError, match="twice: draw from the key"):
    check_bijection(*arguments, lambda key: jnp.ones(3))
  with pytest.raises(ValueError, match="1200 variables.*smaller instance"):
    check_bijection(*arguments, lambda key: jax.random.normal(key, (1200,)))
  with pytest.raises(ValueError, match="choose float64 or float32"):
    check_bijection(*arguments, normal, dtype=jnp.bfloat16)


def test_settings_are_left_alone():
  before = jax.config.jax_enable_x64, jax.config.jax_numpy_dtype_promotion
  failures(jnp.sinh, jnp.sinh, sinh_log_det, normal)
  after = jax.config.jax_enable_x64, jax.config.jax_numpy_dtype_promotion
  assert before == after == (False, "strict")
