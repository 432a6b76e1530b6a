"""log_det against dense slogdet of jacfwd, in float64, with signs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

from revmom.jacobian import LogDet, custom_log_det, log_det

SMALL = 6


@pytest.fixture(autouse=True)
def _x64(x64):
  yield


def dense(f, *args):
  """(sign, log|det J|) from the dense Jacobian."""
  flat, unravel = ravel_pytree(args)
  rows = lambda z: ravel_pytree(f(*unravel(z)))[0]
  return np.linalg.slogdet(np.asarray(jax.jit(jax.jacfwd(rows))(flat)))


def check(f, *args, atol=1e-9, method="auto"):
  """Compares with the dense determinant; returns the result."""
  with jax.numpy_dtype_promotion("standard"):
    result = jax.jit(log_det(f, method))(*args)
    sign, value = dense(f, *args)
  assert float(result.sign) == sign
  np.testing.assert_allclose(result.value, value, rtol=0, atol=atol)
  return result


def numbers(key, *shape):
  with jax.enable_x64(True):
    key = jax.random.PRNGKey(key)
    return np.asarray(jax.random.normal(key, shape, jnp.float64))


x = numbers(0, SMALL)
p = abs(x) + 0.5
W = numbers(2, SMALL, SMALL)
z = np.array([0.3, -0.7, 1.2, 0.5])
H = W @ W.T / SMALL
perm = np.array([2, 1, 0, 5, 4, 3])


def loss(w):
  return 0.5 * w @ H @ w + jnp.sum(jnp.log(jnp.cosh(w)))


def relu_loss(w):
  return jnp.sum(jax.nn.relu(W @ jnp.tanh(w)) ** 2)


def coupling(x):
  a, b = x[:3], x[3:]
  return jnp.concatenate([a, b * jnp.exp(jnp.sin(a)) + jnp.cos(a)])


def coupling_split(x):
  a, b = jnp.split(x, 2)
  return jnp.concatenate([a, b * jnp.exp(jnp.sin(a)) + jnp.cos(a)])


def coupling_mlp(x):
  a, b = x[:3], x[3:]
  h = jnp.tanh(a @ W[:3, :])
  return jnp.concatenate([a, b * jnp.exp(h @ W[:, :3] * 0.1) + h @ W[:, 3:]])


def coupling_mlp_jit(x):
  a, b = x[:3], x[3:]
  h = jax.jit(lambda a: jax.nn.relu(a @ W[:3, :]))(a)
  return jnp.concatenate([a, b * jnp.exp(h @ W[:, :3] * 0.1) + h @ W[:, 3:]])


def autoregressive(x):
  return jnp.stack([2 * x[0], x[1] * jnp.exp(x[0])])


def momentum(w, v):
  v = 0.9 * v - (1 - 0.9) * jax.grad(loss)(w)
  return w + 0.1 * v, v


def momentum_relu(w, v):
  v = 0.9 * v - 0.1 * jax.grad(relu_loss)(w)
  return w + 0.1 * v, v


def momentum_tree(s):
  w, v = s
  v = {"a": 0.9 * v["a"] - 0.1 * jax.grad(loss)(w["a"])}
  return {"a": w["a"] + 0.1 * v["a"]}, v


def momentum_unrolled(w, v):
  for _ in range(3):
    w, v = momentum(w, v)
  return w, v


def momentum_scan(w, v):
  return lax.scan(lambda c, _: (momentum(*c), None), (w, v), None, length=3)[0]


def momentum_fori(w, v):
  return lax.fori_loop(0, 3, lambda i, c: momentum(*c), (w, v))


def nesterov(w, v):
  v = 0.9 * v - 0.1 * jax.grad(loss)(w + 0.9 * v)
  return w + v, v


def sgd(w):
  return w - 0.05 * jax.grad(loss)(w)


ORYX = {  # name: (function, arguments, log|det J| as published, its sign)
  # Silently wrong in Oryx.
  "reshape before exp": (
    lambda x: jnp.exp(x.reshape(2, 2)).reshape(4),
    (z,),
    1.3,
    1,
  ),
  "cast before exp": (
    lambda x: jnp.exp(x.astype(jnp.float32)).astype(jnp.float64),
    (z,),
    1.299999967,
    1,
  ),
  "vmap exp": (
    lambda x: jax.vmap(jnp.exp)(x.reshape(2, 3)),
    (x,),
    0.722079857,
    1,
  ),
  "x**3, negative x": (lambda x: x**3, (x,), -6.212280791, 1),
  "1/x, negative x": (lambda x: 1.0 / x, (x,), 12.803954523, 1),
  "-2/x": (lambda x: -2.0 / x, (z,), 6.915535466, 1),
  "sin outside the principal branch": (
    jnp.sin,
    (np.array([2.5]),),
    -0.221715053,
    -1,
  ),
  # Refused.
  "tanh": (jnp.tanh, (x * 0.3,), -0.358149241, 1),
  "asinh": (jnp.arcsinh, (x,), -1.075215342, 1),
  "transpose": (lambda x: (2 * x).reshape(2, 3).T, (x,), 4.158883083, -1),
  "rev": (lambda x: (2 * x)[::-1], (x,), 4.158883083, -1),
  "permutation gather": (lambda x: (2 * x)[perm], (x,), 4.158883083, 1),
  "dense W @ x": (lambda x: W @ x, (x,), 2.581396381, -1),
  "cumsum": (jnp.cumsum, (x,), 0.0, 1),
  "coupling with jnp.split": (coupling_split, (x,), 0.059015791, 1),
  "coupling, rev, coupling": (
    lambda x: coupling(coupling(x)[::-1]),
    (x,),
    0.703410356,
    -1,
  ),
  "autoregressive with stack": (autoregressive, (x[:2],), 0.487305041, 1),
  "3 momentum steps in scan": (momentum_scan, (x, p), -1.896489282, 1),
  "3 momentum steps in fori_loop": (momentum_fori, (x, p), -1.896489282, 1),
  "Nesterov step": (nesterov, (x, p), -1.790811048, 1),
  "plain SGD step": (sgd, (x,), -0.578534608, 1),
  "cond": (
    lambda x: lax.cond(x[0] > 0, lambda x: 2 * x, lambda x: 2 * x, x),
    (x,),
    4.158883083,
    1,
  ),
  "x + x": (lambda x: x + x, (x,), 4.158883083, 1),
  "x * x, x > 0": (lambda x: x * x, (p,), 3.846710881, 1),
  "leaky relu by where": (
    lambda x: jnp.where(x > 0, x, 0.1 * x),
    (x,),
    -6.907755279,
    1,
  ),
  "mix (x + y, x - y)": (
    lambda x, y: (x + jnp.sum(y) * 0 + y, x - y),
    (z, z + 1),
    2.772588722,
    1,
  ),
  # Right.
  "scale": (lambda x: 3 * x, (x,), 6.591673732, 1),
  "exp": (jnp.exp, (x,), 0.722079857, 1),
  "sigmoid": (jax.nn.sigmoid, (x,), -9.254585417, 1),
  "softplus": (jax.nn.softplus, (x,), -4.266252780, 1),
  "neg": (lambda x: -x, (x,), 0.0, 1),
  "exp, then reshape": (
    lambda x: jnp.exp(x).reshape(2, 3),
    (x,),
    0.722079857,
    1,
  ),
  "exp, then cast": (
    lambda x: jnp.exp(x).astype(jnp.float32).astype(jnp.float64),
    (x,),
    0.722079939,
    1,
  ),
  "roll": (lambda x: jnp.roll(2 * x, 2), (x,), 4.158883083, 1),
  "coupling, slice and concatenate": (coupling, (x,), 0.059015791, 1),
  "coupling with tanh MLP": (coupling_mlp, (x,), 0.354087124, 1),
  "coupling with relu MLP in jit": (coupling_mlp_jit, (x,), -0.221519698, 1),
  "two-argument shear": (
    lambda a, b: (a + 1.0, b * jnp.exp(a) + a),
    (x, p),
    0.722079857,
    1,
  ),
  "scalar times vector": (
    lambda s, v: (2 * s, v * s),
    (np.array(1.3), x),
    2.267332767,
    1,
  ),
  "negative scalar times vector": (
    lambda s, v: (2 * s, v * s),
    (np.array(-1.3), z),
    1.742604238,
    1,
  ),
  "(x*y, y)": (lambda x, y: (x * y, y), (z, z + 3), 4.714679085, 1),
  "division by mixed-sign constants": (
    lambda x: x / np.array([2.0, -3.0, 4.0, -5.0]),
    (z,),
    -4.787491743,
    1,
  ),
  "momentum step": (momentum, (x, p), -0.632163094, 1),
  "momentum step, relu net": (momentum_relu, (x, p), -0.632163094, 1),
  "momentum step, pytree": (
    momentum_tree,
    (({"a": x}, {"a": p}),),
    -0.632163094,
    1,
  ),
  "3 momentum steps, unrolled": (momentum_unrolled, (x, p), -1.896489282, 1),
}

t = np.array([0.3, -0.7, 1.2])
DISTRAX = {
  "x**3": (lambda x: x**3, t, 0.539184483, 1),
  "sigmoid": (jax.nn.sigmoid, t, -4.641647521, 1),
  "softplus": (jax.nn.softplus, t, -1.920823761, 1),
  "x + tanh(x)": (lambda x: x + jnp.tanh(x), t, 1.407491024, 1),
  "where(x > 0, x, .1 x)": (
    lambda x: jnp.where(x > 0, x, 0.1 * x),
    t,
    -2.302585093,
    1,
  ),
  "leaky_relu": (jax.nn.leaky_relu, t, -4.605170186, 1),
  "x * jnp.array(2.0)": (lambda x: x * jnp.array(2.0), t, 2.079441542, 1),
  "cbrt": (jnp.cbrt, t, -2.376952738, 1),
  "casts": (
    lambda x: x.astype(jnp.float32).astype(jnp.float64),
    t,
    0.0,
    1,
  ),
  "2x + 3": (lambda x: 2 * x + 3, t, 2.079441542, 1),
  "exp": (jnp.exp, t, 0.8, 1),
  "tanh": (jnp.tanh, t, -1.730599942, 1),
  "sinh": (jnp.sinh, t, 0.865299971, 1),
  "asinh": (jnp.arcsinh, t, -0.688475928, 1),
  "erf": (jax.scipy.special.erf, t, -1.657653287, 1),
  "1/x": (lambda x: 1 / x, t, 2.756652383, -1),
  "log1p(exp(x))": (lambda x: jnp.log1p(jnp.exp(x)), t, -1.920823761, 1),
  "log2 on abs(x)": (jnp.log2, abs(t), 2.477864953, 1),
  "5 - x": (lambda x: 5 - x, t, 0.0, -1),
  "-x": (lambda x: -x, t, 0.0, -1),
  "jit(2z) inside": (lambda x: jax.jit(lambda z: 2 * z)(x), t, 2.079441542, 1),
  "x**2 on abs(x)": (lambda x: x**2, abs(t), 0.701115350, 1),
  "exp(2x)": (lambda x: jnp.exp(2 * x), t, 3.679441542, 1),
}


@pytest.mark.parametrize("name", ORYX)
def test_functions_on_which_oryx_fails_and_does_not(name):
  f, args, value, sign = ORYX[name]
  # Where float32 comes in, autodiff rounds what the blocks may not.
  atol = 2e-7 if "cast" in name else 1e-9
  result = check(f, *args, atol=atol)
  assert float(result.sign) == sign
  np.testing.assert_allclose(result.value, value, rtol=0, atol=2 * atol)


@pytest.mark.parametrize("name", DISTRAX)
def test_scalar_functions_of_distrax(name):
  f, arg, value, sign = DISTRAX[name]
  result = check(f, arg)
  assert float(result.sign) == sign
  np.testing.assert_allclose(result.value, value, rtol=0, atol=2e-9)


# Transformations.


def shear(state, kernel):
  a, b = state["a"], state["b"]
  return {"a": a, "b": b * jnp.exp(jnp.tanh(kernel @ a)) + a}


def mixed(kernel, x):
  """Couplings, a dense matrix, a loop and a branch."""
  x = coupling(kernel @ x)
  x = lax.scan(lambda x, s: (x * jnp.exp(s * jnp.sin(x)), None), x, p)[0]
  x = lax.cond(x[0] > 0, lambda x: kernel @ x, lambda x: jnp.sinh(x), x)
  return x + 0.1 * jnp.tanh(x)[::-1]


@pytest.mark.slow
def test_gradient():
  def value(kernel, x):
    return log_det(lambda x: mixed(kernel, x))(x).value

  def reference(kernel, x):
    return jnp.linalg.slogdet(jax.jacfwd(lambda x: mixed(kernel, x))(x))[1]

  kernel = np.eye(SMALL) + 0.1 * W
  for argument in (x, -x):
    got = jax.jit(jax.grad(value, argnums=(0, 1)))(kernel, argument)
    want = jax.jit(jax.grad(reference, argnums=(0, 1)))(kernel, argument)
    for a, b in zip(got, want, strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_second_derivative_of_a_step_in_its_hyperparameter():
  def value(rate):
    step = lambda w, v: (w + v - rate * jnp.sin(w) * v, 0.9 * v)
    return log_det(step)(x, p).value

  def reference(rate):
    return jnp.sum(jnp.log(jnp.abs(1 - rate * jnp.cos(x) * p)))

  got = jax.hessian(value)(0.1)
  np.testing.assert_allclose(got, jax.hessian(reference)(0.1), rtol=1e-9)


@pytest.mark.slow
def test_vmap_over_points_and_over_what_a_function_closes_over():
  points = numbers(5, 3, SMALL)
  matrices = numbers(6, 3, SMALL, SMALL)

  def at(matrix, x):
    result = log_det(lambda x: mixed(matrix, x))(x)
    return result.value, result.sign

  values, signs = jax.jit(jax.vmap(at))(matrices, points)
  for k in range(3):
    sign, value = dense(lambda x, k=k: mixed(matrices[k], x), points[k])
    assert float(signs[k]) == sign
    np.testing.assert_allclose(values[k], value, rtol=1e-9)


def test_vmap_returns_a_batch_with_one_report():
  batch = jax.vmap(log_det(coupling))(numbers(5, 3, SMALL))
  assert batch.value.shape == batch.sign.shape == (3,)
  assert batch.method == "structure"
  assert batch.report == log_det(coupling)(x).report


def test_eager_agrees_with_jit():
  eager, jitted = log_det(coupling)(x), jax.jit(log_det(coupling))(x)
  assert isinstance(eager, LogDet)
  assert jax.tree.structure(eager) == jax.tree.structure(jitted)
  np.testing.assert_allclose(eager.value, jitted.value, rtol=1e-12)


# Pytrees and types.


def test_pytrees():
  state = {"a": x, "b": p}
  result = check(lambda state: shear(state, W), state)
  assert [b.kind for b in result.report] == ["diagonal", "diagonal"]


def test_integers_are_parameters():
  def step(state):
    rate = 1.0 / (1 + state["count"]).astype(jnp.float64)
    return {"w": rate * state["w"], "count": state["count"] + 1}

  result = log_det(step)({"w": jnp.asarray(x), "count": jnp.array(1)})
  np.testing.assert_allclose(result.value, SMALL * np.log(0.5), rtol=1e-12)


@pytest.mark.parametrize(
  ("dtype", "wide", "rtol"),
  [("float32", "float32", 1e-6), ("bfloat16", "float32", 1e-2)],
)
def test_low_precision(dtype, wide, rtol):
  def step(w, v):
    return w + v, jnp.asarray(0.5, dtype) * v

  result = log_det(step)(jnp.ones(9, dtype), jnp.ones(9, dtype))
  assert result.value.dtype == result.sign.dtype == wide
  np.testing.assert_allclose(result.value, 9 * np.log(0.5), rtol=rtol)


def test_types_may_differ():
  def step(a, b):
    return a * 2, b * jnp.exp(jnp.sum(a).astype(jnp.float64))

  result = log_det(step)(jnp.ones(2, jnp.float32), jnp.ones(3, jnp.float64))
  np.testing.assert_allclose(result.value, 2 * np.log(2) + 6, rtol=1e-6)


def test_a_custom_derivative_is_used():
  @jax.custom_jvp
  def straight_through(x):
    return jnp.round(x)

  straight_through.defjvp(lambda p, t: (jnp.round(p[0]), 3 * t[0]))
  result = check(straight_through, x)
  np.testing.assert_allclose(result.value, SMALL * np.log(3), rtol=1e-12)
  # Where the derivative of what softplus computes is another.
  assert check(jax.nn.softplus, np.zeros(3)).report[0].kind == "diagonal"


def test_the_pattern_of_a_custom_derivative_is_its_function_s():
  f = lambda x: x + 0.1 * jax.nn.softmax(x, axis=-1)
  result = check(f, x.reshape(3, 2), method="structure")
  assert [tuple(block)[1:] for block in result.report] == [("sparse", 3, 2)]


def test_a_custom_reverse_rule_does_not_stop_it():
  @jax.custom_vjp
  def f(x):
    return jnp.sinh(x)

  f.defvjp(lambda x: (f(x), x), lambda x, bar: (bar * jnp.cosh(x),))
  want = np.sum(np.log(np.cosh(x)))
  for method in ("auto", "dense"):
    np.testing.assert_allclose(log_det(f, method)(x).value, want, rtol=1e-12)


def test_the_dense_method():
  result = check(momentum, x, p, method="dense")
  assert result.method == "dense"
  assert [tuple(block) for block in result.report] == [(0, "dense", 1, 12)]
  singular = log_det(lambda x: x * np.array([0.0, 1.0]), "dense")(x[:2])
  assert float(singular.value) == -np.inf and float(singular.sign) == 0


# Declarations and estimates.


def test_a_declared_closed_form_is_taken():
  declared = custom_log_det(jnp.exp, lambda x: (jnp.sum(x), 1))
  result = check(declared, x)
  assert result.method == "declared" and result.report == ()
  assert check(declared, x, method="structure").method == "structure"


def nesterov_of(size):
  matrix = numbers(7, size, size) / size**0.5
  grad = jax.grad(lambda w: jnp.sum(jnp.tanh(matrix @ w) ** 2))

  def step(w, v):
    v = 0.9 * v - 0.02 * grad(w + 0.9 * v)
    return w + v, v

  return step


@pytest.mark.slow
def test_a_block_above_the_limit_is_estimated_given_a_key():
  size = 24
  step, w = nesterov_of(size), numbers(8, size)
  with pytest.raises(ValueError, match="block of 24 floats.*key="):
    log_det(step, dense_limit=20)(w, 0 * w)
  result = log_det(step, dense_limit=20, key=jax.random.key(0), num_samples=12)(
    w, 0 * w
  )
  assert result.method == "stochastic" and np.isnan(result.sign)
  assert [block.kind for block in result.report] == ["estimate", "diagonal"]
  sign, value = dense(step, w, 0 * w)
  error = abs(result.value - value)
  assert 0 < result.stderr and error < 4 * result.stderr + result.bias_bound


@pytest.mark.slow
def test_the_stochastic_method():
  with pytest.raises(ValueError, match="needs key="):
    log_det(sgd, "stochastic")
  # As many directions as dimensions leave no sampling error.
  result = log_det(sgd, "stochastic", key=jax.random.key(0))(x)
  assert result.method == "stochastic"
  np.testing.assert_allclose(result.value, -0.578534608, atol=1e-6)


# Errors.


def test_errors():
  with pytest.raises(ValueError, match="6 floats to 3"):
    log_det(lambda x: x[:3])(x)
  with pytest.raises(ValueError, match="no floating-point"):
    log_det(lambda n: n)(jnp.arange(3))
  with pytest.raises(ValueError, match="complex128.*real and imaginary"):
    log_det(lambda x: lax.complex(x, x))(jnp.asarray(x))
  with pytest.raises(ValueError, match="method='exact'.*auto"):
    log_det(jnp.exp, "exact")


@pytest.mark.slow
def test_estimated_blocks_have_directions_of_their_own():
  """Else equal blocks would have equal errors, and the sum twice of one."""
  size = 24
  mix = np.eye(size) + 0.3 * numbers(5, size, size) / np.sqrt(size)
  block = lambda x: x + 0.5 * jnp.sin(mix @ x)
  point = numbers(6, size)
  options = dict(dense_limit=4, key=jax.random.key(0), num_samples=6)
  both = lambda f: jax.jit(lambda *x: log_det(f, **options)(*x))
  one = both(block)(point)
  two = both(lambda x, y: (block(x), block(y)))(point, point)
  assert [b.kind for b in two.report].count("estimate") == 2 * [
    b.kind for b in one.report
  ].count("estimate")
  assert abs(two.value - 2 * one.value) > 1e-3
  truth = 2 * dense(block, point)[1]
  assert abs(two.value - truth) < 5 * two.stderr + two.bias_bound


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("method", ["auto", "dense"])
def test_a_singular_map_has_no_sign_or_no_determinant(dtype, method):
  """LU of a singular matrix leaves a pivot of rounding, or none at all."""
  random = np.random.default_rng(0)
  projection = np.eye(8) - 1 / 8
  maps = {
    "softmax": jax.nn.softmax,
    "centring": lambda x: x - jnp.mean(x),
    "a product": lambda x: jnp.asarray(projection, dtype) @ x,
    "a direction": lambda x: x / jnp.linalg.norm(x),
    "whitening": lambda x: (x - jnp.mean(x)) / jnp.std(x),
  }

  @jax.jit
  def everything(x):
    return {name: log_det(f, method)(x) for name, f in maps.items()}

  for name, found in everything(random.normal(size=8).astype(dtype)).items():
    if found.value == -np.inf:
      assert found.sign == 0, name
    else:
      assert np.isnan(found.sign) and found.bias_bound == np.inf, name


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_small_determinants_are_not_taken_for_rounding(dtype):
  """Neither scales, nor triangles, nor a hundred random numbers."""
  random = np.random.default_rng(1)
  size = 100
  matrix = random.normal(size=(size, size))
  scales = 10.0 ** random.integers(-8, 9, size)
  triangle = np.eye(size) - np.triu(np.ones((size, size)), 1)
  x = random.normal(size=size).astype(dtype)
  cases = np.stack([matrix, matrix * scales, matrix.T * scales, triangle])
  cases = cases.astype(dtype)
  found = jax.jit(
    jax.vmap(lambda matrix: log_det(lambda x: matrix @ x, "dense")(x))
  )(cases)
  signs, values = np.linalg.slogdet(np.float64(cases))
  np.testing.assert_array_equal(np.asarray(found.sign), signs)
  np.testing.assert_array_equal(found.bias_bound, np.zeros(4))
  np.testing.assert_allclose(found.value, values, rtol=1e-3, atol=1e-3)


def test_arguments_beside_the_function():
  with pytest.raises(ValueError, match=r"log_det\(f\)\(x\)"):
    log_det(jnp.tanh, jnp.ones(3))
  with pytest.raises(ValueError, match="choose one of"):
    log_det(jnp.tanh, "exact")
