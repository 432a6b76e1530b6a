"""Inverses are right or refused, on functions where others fail and more."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.flatten_util import ravel_pytree

from revmom.jacobian import (
  NotInvertible,
  custom_inverse,
  inverse,
  inverse_and_log_det,
  log_det,
)
from revmom.jacobian.inverses import rules

RNG = np.random.default_rng(0)
X = RNG.normal(size=6)
P = np.abs(X) + 0.5
Z = np.array([0.3, -0.7, 1.2, 0.5])
S = np.array([0.3, -0.7, 1.2])
W = RNG.normal(size=(6, 6))
H = W @ W.T / 6
B = RNG.normal(size=(2, 3, 3))
PERMUTATION = np.array([2, 1, 0, 5, 4, 3])


def loss(w):
  return 0.5 * w @ H @ w + jnp.sum(jnp.log(jnp.cosh(w)))


def relu_loss(w):
  return jnp.sum(jax.nn.relu(W @ jnp.tanh(w)) ** 2)


def affine(a, b):
  return b * jnp.exp(jnp.sin(a)) + jnp.cos(a)


def coupling(x):
  a, b = x[:3], x[3:]
  return jnp.concatenate([a, affine(a, b)])


def coupling_split(x):
  a, b = jnp.split(x, 2)
  return jnp.concatenate([a, affine(a, b)])


def coupling_net(x):
  a, b = x[:3], x[3:]
  h = jax.jit(lambda a: jax.nn.relu(a @ W[:3, :]))(a)
  return jnp.concatenate([a, b * jnp.exp(h @ W[:, :3] * 0.1) + h @ W[:, 3:]])


def masked_coupling(x):
  mask = jnp.arange(6.0) % 2
  net = W @ (mask * x)
  return mask * x + (1 - mask) * (x * jnp.exp(jnp.tanh(net)) + net)


def momentum(w, v, loss=loss):
  v = 0.9 * v - 0.1 * jax.grad(loss)(w)
  return w + 0.1 * v, v


def momentum_tree(s):
  w, v = s
  v = {"a": 0.9 * v["a"] - 0.1 * jax.grad(loss)(w["a"])}
  return {"a": w["a"] + 0.1 * v["a"]}, v


def adamw(w, m, v):
  g = jax.grad(loss)(w)
  m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
  return 0.99 * w - 0.1 * m / (jnp.sqrt(v) + 1e-3), m, v


def leapfrog(q, p):
  p = p - 0.05 * jax.grad(loss)(q)
  q = q + 0.1 * p
  return q, p - 0.05 * jax.grad(loss)(q)


def scanned(w, v, length=3):
  step = lambda c, _: (momentum(*c), None)
  return lax.scan(step, (w, v), None, length=length)[0]


def looped(w, v):
  return lax.fori_loop(0, 3, lambda i, c: momentum(*c), (w, v))


def counted(x):
  return lax.fori_loop(0, 3, lambda i, x: 2 * x + i.astype(x.dtype), x)


def autoregressive(x):
  def step(carry, x):
    y = x * jnp.exp(jnp.tanh(carry)) + carry
    return 0.5 * carry + jnp.sin(y), y

  return lax.scan(step, jnp.array(0.3), x)[1]


def recurrent(x):
  # The carry is unknown, and so are the inputs.
  def step(carry, x):
    y = x + jnp.tanh(carry)
    return 1.1 * carry + jnp.sin(y), y

  carry, ys = lax.scan(step, x[0], x[1:], reverse=True)
  return jnp.concatenate([carry[None], ys])


def noisy(x):
  # The key is carried, and split without an inverse.
  def step(carry, _):
    key, noise = jax.random.split(carry[0])
    return (key, 2 * carry[1] + jax.random.normal(noise, x.shape)), None

  return lax.scan(step, (jax.random.key(0), x), None, length=2)[0][1]


def known_branch(n, x):
  return n, lax.cond(n > 0, lambda x: jnp.exp(n) * x, jnp.sinh, x)


RIGHT = {
  "reshape before exp": (lambda x: jnp.exp(x.reshape(2, 2)).reshape(4), Z),
  "vmap exp": (lambda x: jax.vmap(jnp.exp)(x.reshape(2, 3)), X),
  "x**3": (lambda x: x**3, X),
  "x**-5": (lambda x: x**-5, X),
  "x**0.7": (lambda x: x**0.7, P),
  "1/x": (lambda x: 1.0 / x, X),
  "-2/x": (lambda x: -2.0 / x, Z),
  "tanh": (jnp.tanh, X * 0.3),
  "asinh": (jnp.arcsinh, X),
  "transpose": (lambda x: (2 * x).reshape(2, 3).T, X),
  "rev": (lambda x: (2 * x)[::-1], X),
  "permutation": (lambda x: (2 * x)[PERMUTATION], X),
  "matrix": (lambda x: W @ x, X),
  "matrix from the right": (lambda x: jnp.exp(x.reshape(2, 3) @ W[:3, :3]), X),
  "cumsum": (jnp.cumsum, X),
  "reverse cumsum": (lambda x: lax.cumsum(x, reverse=True), X),
  "split": (coupling_split, X),
  "coupling, rev, coupling": (lambda x: coupling(coupling(x)[::-1]), X),
  "stack": (lambda x: jnp.stack([2 * x[0], x[1] * jnp.exp(x[0])]), X[:2]),
  "momentum in scan": (scanned, X, P),
  "momentum in fori_loop": (looped, X, P),
  "known branch": (known_branch, np.array(0.5), X),
  "add in place": (lambda x: x.at[1::2].add(jnp.sin(x[::2])), X),
  "multiply in place": (lambda x: x.at[1::2].multiply(jnp.exp(x[::2])), X),
  "scale": (lambda x: 3 * x, X),
  "exp": (jnp.exp, X),
  "sigmoid": (jax.nn.sigmoid, X),
  "neg": (lambda x: -x, X),
  "roll": (lambda x: jnp.roll(2 * x, 2), X),
  "coupling": (coupling, X),
  "coupling with a net": (coupling_net, X),
  "masked coupling": (masked_coupling, X),
  "shear": (lambda a, b: (a + 1.0, b * jnp.exp(a) + a), X, P),
  "scalar times vector": (lambda s, v: (2 * s, v * s), np.array(-1.3), X),
  "product and factor": (lambda x, y: (x * y, y), Z, Z + 3),
  "division by constants": (lambda x: x / jnp.array([2.0, -3, 4, -5]), Z),
  "momentum": (momentum, X, P),
  "momentum, relu net": (functools.partial(momentum, loss=relu_loss), X, P),
  "momentum, pytree": (momentum_tree, ({"a": X}, {"a": P})),
  "AdamW": (adamw, X, 0.1 * X, P),
  "leapfrog": (leapfrog, X, P),
  "two halves of one array": (
    lambda x: lax.dynamic_slice(jnp.concatenate([x, x]), (2,), (6,)),
    X,
  ),
  "batch of matrices": (
    lambda x: jnp.einsum("bij,bjk->kbi", B, x.reshape(2, 3, 1)),
    X,
  ),
  "times an array": (lambda x: x * jnp.array(2.0), S),
  "cbrt": (jnp.cbrt, S),
  "sinh": (jnp.sinh, S),
  "erf": (jax.scipy.special.erf, S),
  "log1p(exp(x))": (lambda x: jnp.log1p(jnp.exp(x)), S),
  "log2(1 + exp2(x))": (lambda x: jnp.log2(1 + jnp.exp2(x)), S),
  "5 - x": (lambda x: 5 - x, S),
  "jit": (lambda x: jax.jit(lambda z: 2 * z)(x), S),
  "exp(2 x)": (lambda x: jnp.exp(2 * x), S),
  "set": (lambda x: x.at[:3].set(jnp.exp(x[:3])), X),
  "even and odd": (
    lambda x: jnp.stack([x[::2], x[1::2] * jnp.exp(x[::2])], 1),
    X,
  ),
  "counter": (counted, X),
  "recurrent scan": (recurrent, X),
  "noise in a scan": (noisy, X),
}
# Rounded to float32 on the way.
ROUNDED = {
  "cast before exp": (
    lambda x: jnp.exp(x.astype(jnp.float32)).astype(jnp.float64),
    Z,
  ),
  "exp before cast": (
    lambda x: jnp.exp(x).astype(jnp.float32).astype(jnp.float64),
    X,
  ),
}


def nesterov(w, v):
  v = 0.9 * v - 0.1 * jax.grad(loss)(w + 0.9 * v)
  return w + v, v


# No primitive of these is one-to-one, or an unknown value meets itself.
REFUSED = {
  "sin": (jnp.sin, "`sin` has no rule", S),
  "x * x": (lambda x: x * x, "`mul` has two operands.*unknown", P),
  "x**2": (lambda x: x**2, "`integer_pow`.*even exponent 2", P),
  "x**2.0": (lambda x: lax.pow(x, 2.0), "`pow` with an even exponent", P),
  "cosh": (jnp.cosh, "`cosh` has no rule", S),
  "abs": (jnp.abs, "`abs` has no rule", S),
  "gelu": (jax.nn.gelu, "`mul` has two operands.*unknown", S),
  "relu": (jax.nn.relu, "`max` has no rule", S),
  "x exp(x)": (lambda x: x * jnp.exp(x), "`mul` has two operands", S),
  "round": (jnp.round, "`round` has no rule", S),
  "sort": (jnp.sort, "`sort` has no rule", S),
  "x + tanh(x)": (lambda x: x + jnp.tanh(x), "`add` has two operands", S),
  "x + x": (lambda x: x + x, "`add` has two operands", S),
  "x + W x": (lambda x: x + W @ x, "`add` has two operands", X),
  "mix": (lambda x, y: (x + y, x - y), "`add` has two operands", Z, Z + 1),
  "leaky_relu": (
    jax.nn.leaky_relu,
    "`select_n` has an index or a condition",
    S,
  ),
  "elu": (
    jax.nn.elu,
    "`select_n` has an index or a condition that is no constant",
    S,
  ),
  "softplus": (jax.nn.softplus, "`add` has two operands", S),
  "rectangular": (
    lambda x: jnp.concatenate([W[:5] @ x, x[:1]]),
    r"a matrix of shape \(5, 6\), which is not square",
    X,
  ),
  "convolution": (
    lambda x: jnp.convolve(x, jnp.array([1.0, 0.5]))[:6],
    "`conv_general_dilated` has no rule",
    X,
  ),
  "an index of the input": (
    lambda x: x[jnp.argsort(x)] + 0 * x,
    "has an index or a condition that is no constant",
    X,
  ),
  "times 0": (
    lambda x: jnp.exp(x) * jnp.array([1.0, 0, 1]),
    "by a constant 0",
    S,
  ),
  "folding branches": (
    lambda x: lax.cond(x[0] > 0, lambda x: 2 * x, lambda x: -x, x),
    "`cond` branches on an unknown value",
    S,
  ),
  "singular": (lambda x, y: (x + y, 2 * x + 2 * y), "`add`.*unknown", S, S),
  "centred": (lambda x: x - jnp.mean(x), "`sub`.*both unknown", S),
  "unused": (lambda x, y: (x, x), "no output depends on an input", S, S),
  "sums": (lambda x: jnp.sum(x), "maps 3 floats to 1", S),
  "Nesterov": (nesterov, "`sub` has two operands that are both unknown", X, P),
  "plain SGD": (
    lambda w: w - 0.05 * jax.grad(loss)(w),
    "`sub` has two operands that are both unknown",
    X,
  ),
  "while": (
    lambda x: lax.while_loop(lambda x: x[0] < 5, lambda x: 2 * x, x),
    "`while` stops by a condition on the unknown",
    X,
  ),
  "scan from a known start": (
    autoregressive,
    "`scan` has an end that is not known",
    X,
  ),
  "scan over its own product": (
    lambda x: lax.scan(lambda c, _: (c * c, None), x, None, length=2)[0],
    "`mul` has two operands",
    P,
  ),
}


def shapes(arguments):
  return jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tuple(arguments)
  )


def arrays(arguments):
  return jax.tree.map(jnp.asarray, tuple(arguments))


def assert_close(got, expected, tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance),
    got,
    expected,
  )


def assert_inverts(f, arguments, tolerance):
  arguments = arrays(arguments)
  y = f(*arguments)
  x = inverse(f, *shapes(arguments))(y)
  x = x if len(arguments) > 1 else (x,)
  assert_close(x, arguments, tolerance)
  assert_close(f(*x), y, tolerance)


SLOW = {
  "AdamW",
  "coupling with a net",
  "coupling, rev, coupling",
  "even and odd",
  "leapfrog",
  "masked coupling",
  "momentum in fori_loop",
  "momentum, relu net",
  "multiply in place",
  "noise in a scan",
  "recurrent scan",
}


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name in RIGHT
  ],
)
def test_right(x64, name):
  f, *arguments = RIGHT[name]
  assert_inverts(f, arguments, 1e-9)


@pytest.mark.parametrize("name", ROUNDED)
def test_right_to_float32(x64, name):
  f, *arguments = ROUNDED[name]
  assert_inverts(f, arguments, 1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(x64, name):
  f, reason, *arguments = REFUSED[name]
  arguments = arrays(arguments)
  with pytest.raises(NotInvertible, match=reason):
    inverse(f, *shapes(arguments))(f(*arguments))


@pytest.mark.slow
@pytest.mark.parametrize(
  "name",
  [
    "coupling",
    "masked coupling",
    "momentum in scan",
    "momentum, pytree",
    "matrix",
  ],
)
def test_log_det_of_the_inverse(x64, name):
  f, *arguments = RIGHT[name]
  arguments = arrays(arguments)
  x, value = inverse_and_log_det(f, *shapes(arguments))(f(*arguments))
  assert_close(x if len(arguments) > 1 else (x,), arguments, 1e-9)
  flat, unravel = jax.flatten_util.ravel_pytree(arguments)
  dense = jax.jacfwd(
    lambda flat: jax.flatten_util.ravel_pytree(f(*unravel(flat)))[0]
  )(flat)
  np.testing.assert_allclose(value, -np.linalg.slogdet(dense)[1], 1e-9, 1e-9)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
  "f, outside",
  [
    (jnp.exp, -1.0),
    (jnp.tanh, 1.5),
    (jax.nn.sigmoid, 1.2),
    (jnp.arctan, 2.0),
    (jnp.arcsinh, np.nan),
    (lambda x: jnp.exp(x) ** 3, -0.5),
  ],
)
def test_outside_of_the_range(x64, f, outside):
  like = jax.ShapeDtypeStruct((2,), jnp.float64)
  inside = f(jnp.array(0.3))
  got = inverse(f, like)(jnp.stack([inside, jnp.asarray(outside)]))
  np.testing.assert_allclose(got, [0.3, np.nan], 1e-12)


@pytest.mark.parametrize("f", [jnp.sqrt, lax.rsqrt, jnp.arccosh])
def test_outside_of_a_domain_with_an_end(x64, f):
  x = jnp.array([1.2, 2.5])
  got = inverse(f, x)(f(x).at[1].set(-1.0))
  np.testing.assert_allclose(got, [1.2, np.nan], 1e-12)


ELEMENTARY = {
  "exp": lambda x: jnp.exp(0.3 * x),
  "tanh": lambda x: jnp.tanh(0.2 * x),
  "asinh": jnp.arcsinh,
  "sinh": lambda x: jnp.sinh(0.3 * x),
  "shift": lambda x: 1.5 - x,
  "scale": lambda x: x * jnp.array([0.5, -2.0, 1.0, 3.0]),
  "sigmoid": jax.nn.sigmoid,
  "reverse": lambda x: x[::-1],
  "reshape": lambda x: jnp.exp(0.1 * x.reshape(2, 2)).T.reshape(4),
  "couple": lambda x: jnp.concatenate([x[:2], x[2:] + jnp.sin(x[:2])]),
  "twist": lambda x: x.at[1::2].multiply(jnp.exp(0.2 * jnp.tanh(x[::2]))),
  "cumulate": lambda x: jnp.cumsum(x),
  "rotate": lambda x: jnp.asarray(W[:4, :4]) @ x,
}


@pytest.mark.slow
@settings(
  max_examples=20,
  deadline=None,
  derandomize=True,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
  names=st.lists(st.sampled_from(sorted(ELEMENTARY)), min_size=1, max_size=4)
)
def test_compositions(x64, names):
  def f(x):
    for name in names:
      x = ELEMENTARY[name](x)
    return x

  x = jnp.asarray(Z)
  slope = jax.jacfwd(f)(x)
  try:
    back = inverse(f)(f(x))
  except NotInvertible as error:
    # The only way to fail: digits that f itself loses.
    assert "round trip" in str(error)
    return
  np.testing.assert_allclose(
    back, x, rtol=0, atol=1e-13 * np.linalg.cond(slope) + 1e-10
  )


@pytest.mark.slow
def test_transformations(x64):
  x = jnp.asarray(X)
  y, slope = coupling_net(x), jax.jacfwd(coupling_net)(x)
  g = inverse(coupling_net)
  expected = jnp.linalg.inv(slope)
  for transform in (jax.jacfwd, jax.jacrev):
    np.testing.assert_allclose(transform(g)(y), expected, 1e-9, 1e-12)
  np.testing.assert_allclose(jax.jit(g)(y), x, 1e-12)
  xs = jnp.stack([x, 2 * x, -x])
  ys = jax.vmap(coupling_net)(xs)
  np.testing.assert_allclose(jax.jit(jax.vmap(g))(ys), xs, 1e-10, 1e-12)
  back = lax.scan(lambda c, y: (c, g(y)), 0, ys)[1]
  np.testing.assert_allclose(back, xs, 1e-10, 1e-12)


@pytest.mark.slow
def test_derivatives_have_no_nan(x64):
  x = jnp.asarray(X)
  g = inverse(masked_coupling)
  expected = jnp.linalg.inv(jax.jacfwd(masked_coupling)(x))
  for transform in (jax.jacfwd, jax.jacrev):
    got = transform(g)(masked_coupling(x))
    np.testing.assert_allclose(got, expected, 1e-9, 1e-11)


def test_closed_over_tracers(x64):
  def back(scale, y):
    return inverse(lambda x: jnp.exp(scale * x) + scale)(y)[0]

  value, slope = jax.jit(jax.value_and_grad(back))(0.5, jnp.array([2.0]))
  np.testing.assert_allclose(value, np.log(1.5) / 0.5, 1e-12)
  expected = -1 / (1.5 * 0.5) - np.log(1.5) / 0.25
  np.testing.assert_allclose(slope, expected, 1e-12)


def test_a_hundred_momentum_steps_in_a_scan(x64):
  run = functools.partial(scanned, length=100)
  start = jnp.asarray(X), jnp.asarray(P)
  w, v = jax.jit(inverse(run, *start))(run(*start))
  np.testing.assert_allclose(w, X, 1e-8, 1e-9)
  np.testing.assert_allclose(v, P, 1e-8, 1e-9)


def test_tracing_is_linear_in_the_length(x64):
  def unrolled(steps):
    def f(w, v):
      for _ in range(steps):
        w, v = momentum(w, v)
      return w, v

    inverted = jax.make_jaxpr(inverse(f))((jnp.asarray(X), jnp.asarray(P)))
    return len(inverted.jaxpr.eqns)

  assert unrolled(40) <= 2 * unrolled(20)


def test_traced_number_of_steps(x64):
  def f(n, x):
    body = lambda i, x: jnp.sinh(x) + i.astype(x.dtype)
    return n, lax.fori_loop(0, n, body, x)

  n, x = jnp.array(3), jnp.asarray(0.3 * X)
  back = inverse(f)(f(n, x))
  assert back[0] == 3
  np.testing.assert_allclose(back[1], x, 1e-9, 1e-9)


def test_integers_pass_through(x64):
  def f(state):
    step, x = state
    scale = 1 - 0.9 ** (step + 1).astype(x.dtype)
    return step + 1, x / scale

  step, x = inverse(f)(f((jnp.array(4), jnp.asarray(X))))
  assert step == 4 and step.dtype == jnp.array(4).dtype
  np.testing.assert_allclose(x, X, 1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_types_are_kept(dtype):
  def f(x):
    return {"a": jnp.tanh(x[:3]), "b": 2 * x[3:] + jnp.sin(x[:3])}

  x = jnp.asarray(0.3 * X, dtype)
  back = inverse(f, x)(f(x))
  assert back.dtype == dtype
  tolerance = 100 * float(jnp.finfo(dtype).eps)
  np.testing.assert_allclose(
    back.astype("float32"), x.astype("float32"), tolerance, tolerance
  )


def test_what_numpy_gives_takes_the_type_that_jax_has():
  x = inverse(lambda x: 2 * x)(np.array([1.0, -3.0]))
  assert x.dtype == jnp.float32
  np.testing.assert_array_equal(x, [0.5, -1.5])


def square_root(y):
  return jnp.sqrt(y)


def test_custom_inverse(x64):
  square = custom_inverse(lambda x: x * x, square_root)
  f = lambda x: jnp.log(square(jnp.exp(x)))
  x = jnp.asarray(X)
  np.testing.assert_allclose(inverse(f)(2 * x), x, 1e-12, 1e-12)
  # It computes and differentiates like what it wraps.
  np.testing.assert_allclose(jax.jit(square)(x), X**2)
  np.testing.assert_allclose(jax.grad(lambda x: square(x).sum())(x), 2 * x)
  np.testing.assert_allclose(jax.jacfwd(square)(x), np.diag(2 * X))
  rows = jax.vmap(lambda x: square(jnp.exp(x)))
  np.testing.assert_allclose(
    inverse(rows, x.reshape(2, 3))(rows(x.reshape(2, 3))),
    X.reshape(2, 3),
    1e-12,
  )


@pytest.mark.slow
def test_custom_inverse_with_arguments(x64):
  rotate = custom_inverse(
    lambda x, angle: {"r": jnp.cos(angle) * x[:4], "i": jnp.sinh(x[4:])},
    lambda y, angle: jnp.concatenate(
      [y["r"] / jnp.cos(angle), jnp.arcsinh(y["i"])]
    ),
  )

  def f(angle, x):
    y = rotate(jnp.sinh(x), angle)
    return jnp.sinh(angle), y["r"], jnp.sin(y["r"][:2]) + y["i"]

  angle, x = jnp.array(0.4), jnp.asarray(X)
  back = inverse(f, angle, x)(f(angle, x))
  np.testing.assert_allclose(back[0], angle, 1e-12)
  np.testing.assert_allclose(back[1], x, 1e-12)

  half = lambda angle, x: (angle, rotate(x, angle)["r"], x[:2])
  with pytest.raises(NotInvertible, match="`custom_inverse` needs all of its"):
    inverse(half, angle, x)(half(angle, x))


def custom_matrix(wrong=0.0):
  """y = a M x, with the inverse and the log-determinant of its own."""
  matrix = np.array([[1.0, 2.0, 0.5], [0.0, -3.0, 1.0], [0.0, 0.0, 2.0]])

  def rule(x, a):
    return x.size * jnp.log(jnp.abs(a)) + jnp.log(6.0) + wrong, -jnp.sign(a)

  return custom_inverse(
    lambda x, a: {"y": a * (jnp.asarray(matrix) @ x)},
    lambda y, a: jnp.linalg.solve(jnp.asarray(matrix), y["y"]) / a,
    rule,
  )


@pytest.mark.slow
def test_log_det_of_a_custom_inverse(x64):
  scaled = custom_matrix()
  x, a = jnp.array([0.3, -1.0, 2.0]), jnp.array(1.7)

  def f(a, x):
    return a**3, jnp.arcsinh(scaled(x, a)["y"])

  for function, arguments in (
    # Mapped over both, with an odd number of sign changes to sort.
    (jax.vmap(f), (jnp.array([1.7, -0.4, 0.9]), jnp.stack([x, 2 * x, -x]))),
    (lambda x: jax.vmap(lambda x: f(a, x)[1])(x), (jnp.stack([x, 2 * x]),)),
  ):
    flat, unravel = ravel_pytree(arguments)
    rows = lambda z, u=unravel, g=function: ravel_pytree(g(*u(z)))[0]
    sign, value = np.linalg.slogdet(jax.jacfwd(rows)(flat))
    got = jax.jit(log_det(function, method="structure"))(*arguments)
    np.testing.assert_allclose(got.value, value, rtol=1e-12)
    assert got.sign == sign
    assert "declared" in {block.kind for block in got.report}
  by_rule = lambda a: log_det(lambda x: f(a, x)[1])(x).value
  by_jacobian = lambda a: jnp.linalg.slogdet(
    jax.jacfwd(lambda x: f(a, x)[1])(x)
  )[1]
  slopes = jax.jit(lambda a: (jax.grad(by_rule)(a), jax.grad(by_jacobian)(a)))
  np.testing.assert_allclose(*slopes(a), rtol=1e-9)
  back, value = inverse_and_log_det(f, a, x)(f(a, x))
  np.testing.assert_allclose(back[1], x, 1e-9)
  np.testing.assert_allclose(-value, log_det(f)(a, x).value, 1e-9)


def test_log_det_of_a_custom_inverse_of_less_than_its_input(x64):
  """Where the rule does not apply, the function itself is looked into."""
  scaled = custom_matrix()
  x = jnp.array([0.3, -1.0, 2.0])
  f = lambda x: scaled(x, x[0] + 3)["y"]
  got = log_det(f)(x)
  sign, value = np.linalg.slogdet(jax.jacfwd(f)(x))
  np.testing.assert_allclose(got.value, value, rtol=1e-12)
  assert got.sign == sign and got.report[-1].kind != "declared"


def test_a_wrong_log_det_of_a_custom_inverse_is_found(x64):
  x, a = jnp.ones(3), jnp.array(2.0)
  with pytest.raises(ValueError, match="gives .* and a dense Jacobian .*"):
    log_det(lambda x: custom_matrix(0.5)(x, a)["y"])(x)
  wrong_sign = custom_inverse(jnp.negative, jnp.negative, lambda x: (0.0, 1))
  with pytest.raises(ValueError, match=r"with sign \+1 .* 0 with sign -1"):
    log_det(wrong_sign)(x)
  shaped = custom_inverse(jnp.exp, jnp.log, lambda x: (x, 1))
  with pytest.raises(ValueError, match=r"arrays of shapes \(3,\) and \(\);"):
    log_det(shaped)(x)
  nowhere = custom_inverse(
    lambda x: jnp.log(x - 9), lambda y: jnp.exp(y) + 9, lambda x: (0.0, 1)
  )
  with pytest.raises(ValueError, match="finite for none of the numbers"):
    log_det(nowhere)(10 * x)


def test_wrong_custom_inverse():
  wrong = custom_inverse(lambda x: x * x, lambda y: -jnp.sqrt(y))
  with pytest.raises(NotInvertible, match="round trip"):
    inverse(lambda x: wrong(jnp.exp(x)))(jnp.ones(3))


def test_a_wrong_rule_is_found(monkeypatch):
  monkeypatch.setitem(rules.UNARY, "sinh", lambda y, p: 1.1 * jnp.arcsinh(y))
  with pytest.raises(NotInvertible, match="off by .*not one-to-one"):
    inverse(jnp.sinh)(jnp.ones(3))


@pytest.mark.slow
def test_bad_input():
  with pytest.raises(ValueError, match=r"got y of float32\[2\].*float32\[4\]"):
    inverse(lambda x: jnp.concatenate([x, x]))(jnp.ones(2))
  with pytest.raises(ValueError, match=r"Give examples of f's arguments"):
    inverse(lambda x: {"a": x})(jnp.ones(2))
  with pytest.raises(ValueError, match="takes 2 arguments and y is no tuple"):
    inverse(momentum)(jnp.ones(2))
  x = jnp.ones(2)
  with pytest.raises(NotInvertible, match="finite for none of the numbers"):
    inverse(lambda x: jnp.log(x - 9))(x)
  far = jnp.array([10.0, 11.0])
  back = inverse(lambda x: jnp.log(x - 9), far)(jnp.log(far - 9))
  np.testing.assert_allclose(back, far, 1e-6)
