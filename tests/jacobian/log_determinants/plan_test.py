"""What structure finds in programs, against dense slogdet in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.custom_batching import custom_vmap
from jax.flatten_util import ravel_pytree

from revmom.jacobian import log_det
from revmom.jacobian.log_determinants import plan
from revmom.jacobian.program.equations import inline, subprograms

D = 8


@pytest.fixture(autouse=True)
def _x64(x64):
  yield


def dense(f, *args):
  """(sign, log|det J|) from the dense Jacobian."""
  flat, unravel = ravel_pytree(args)
  rows = lambda z: ravel_pytree(f(*unravel(z)))[0]
  return np.linalg.slogdet(np.asarray(jax.jit(jax.jacfwd(rows))(flat)))


def check(f, *args):
  """Compares the structure method with the dense one; returns its blocks."""
  result = jax.jit(log_det(f, method="structure"))(*args)
  sign, value = dense(f, *args)
  assert float(result.sign) == sign
  np.testing.assert_allclose(result.value, value, rtol=0, atol=1e-9)
  assert result.method == "structure"
  return [(b.kind, b.blocks, b.largest) for b in result.report]


def horner(x):
  return jnp.polyval(jnp.array([0.3, 1.0, 2.0, 0.5]), x)


@pytest.mark.skipif(
  not hasattr(lax, "polynomial"), reason="this JAX has a loop in its place"
)
def test_a_polynomial_is_elementwise():
  assert check(lambda x: horner(jnp.exp(x)), jnp.arange(3.0))


@custom_vmap
def tripled(x):
  return 3 * x


tripled.def_vmap(lambda size, batched, x: (3 * x, batched[0]))


def solved(z):
  slope = lambda g, y: y / g(jnp.ones_like(y))
  return lax.custom_root(lambda y: y * y - z, z, lambda f, y: z**0.5, slope)


@pytest.mark.parametrize("f", [tripled, solved])
def test_calls_with_rules_of_their_own_are_seen_through(f):
  blocks = check(lambda x: jnp.arctan(f(jnp.exp(x))), jnp.arange(3.0))
  assert {kind for kind, *_ in blocks} == {"diagonal"}


def numbers(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


w, v, u = numbers(0, D), numbers(1, D), abs(numbers(2, D)) + 0.1
W, V = numbers(3, D, D) / D**0.5, numbers(4, D, D) / D**0.5
grad = jax.grad(lambda w: jnp.sum(jnp.tanh(W @ w) ** 2))


def momentum(w, v):
  v = 0.9 * v - 0.1 * grad(w)
  return w + 0.1 * v, v


def momentum_gradient_last(w, v):
  faded = 0.9 * v
  decayed = 0.99 * w
  g = grad(w)
  v = faded - 0.1 * g
  return decayed + v, v


def velocity_first(w, v):
  w = w + 0.1 * v
  return w, 0.9 * v - 0.1 * grad(w)


def adam(w, m, v, decay=0.0, t=3):
  g = grad(w)
  m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
  mean, square = m / (1 - 0.9**t), v / (1 - 0.99**t)
  return (1 - decay) * w - 0.01 * mean / (jnp.sqrt(square) + 1e-8), m, v


def adamw(w, m, v):
  return adam(w, m, v, 0.1)


def nesterov(w, v):
  v = 0.9 * v - 0.1 * grad(w + 0.9 * v)
  return w + v, v


def sgd(w):
  return w - 0.1 * grad(w)


def revnet(a, b):
  a = a + jnp.tanh(W @ b)
  return a, b + jnp.tanh(W.T @ a)


def leapfrog(q, p):
  p = p - 0.05 * grad(q)
  q = q + 0.1 * p
  return q, p - 0.05 * grad(q)


def coupling(x, kernel=W[:4, :4]):
  a, b = jnp.split(x, 2)
  h = jnp.tanh(kernel @ a)
  return jnp.concatenate([a, b * jnp.exp(h) + h])


def coupling_stack(x):
  for step in range(3):
    x = coupling(x[np.random.default_rng(step).permutation(D)])
  return x


def glow_step(x):
  for _ in range(2):
    x = coupling(W @ ((x + 0.1) * np.exp(V[0])))
  return x


ONES = [("diagonal", D, 1)]
STEPS = {  # name: (function, arguments, the blocks that must be found)
  "momentum": (momentum, (w, v), 3 * ONES),
  "gradient last": (momentum_gradient_last, (w, v), 4 * ONES),
  "velocity first": (velocity_first, (w, v), 3 * ONES),
  "adam": (adam, (w, m := v, u), 6 * ONES),
  "adamw": (adamw, (w, m, u), 6 * ONES),
  "nesterov": (nesterov, (w, v), [("full", 1, D), *ONES]),
  "sgd": (sgd, (w,), [("full", 1, D)]),
  "revnet": (revnet, (w, v), 2 * ONES),
  "leapfrog": (leapfrog, (w, v), 3 * ONES),
}


@pytest.mark.parametrize("name", STEPS)
def test_optimizer_steps_and_reversible_blocks(name):
  f, args, blocks = STEPS[name]
  assert check(f, *args) == blocks


MASK = np.tril(np.ones((D, D)), -1)


def masked_autoregressive(x):
  h = jnp.tanh((W * MASK) @ x)
  s = jnp.tanh((V * np.tril(np.ones((D, D)))) @ h)
  return x * jnp.exp(s) + h


def triangular_inside(x):
  return x * jnp.exp(jnp.tanh(jnp.tril(W, -1) @ x)) + jnp.tril(V, -1) @ x


def causal_convolution(x):
  kernel = np.array(numbers(5, 3, 2, 2))
  kernel[-1] = np.tril(kernel[-1])
  y = lax.conv_general_dilated(
    x, kernel, (1,), [(4, 0)], rhs_dilation=(2,), dimension_numbers=_CHANNELS
  )
  return y + 3 * jnp.tanh(x)


_CHANNELS = ("NWC", "WIO", "NWC")


def invertible_convolution(x):
  return lax.conv_general_dilated(
    x, W[:2, :2][None], (1,), "VALID", dimension_numbers=_CHANNELS
  )


def channels_einsum(x):
  return jnp.einsum("btc,cd->dbt", x, W[:2, :2])


def squeeze_and_mix(x):
  batch, length, channels = x.shape
  x = x.reshape(batch, length // 2, 2, channels)
  return x.transpose(0, 1, 3, 2).reshape(batch, length // 2, 4) @ W[:4, :4]


def batched_matrices(x):
  return jnp.einsum("bij,bkj->bki", W.reshape(4, 4, 4), x)


def masked_multiply(x):
  keep = np.array([1.0, 0.0] * 4)
  return x + (x * keep)[::-1] * (1 - keep) * 5


def scatter_coupling(x):
  return x.at[4:].multiply(jnp.exp(x[:4]))


def scatter_set(x):
  return x.at[::2].set(x[::2] * jnp.sin(x[1::2]))


def scatter_add(x):
  return (2 * x).at[np.array([1, 1, 3])].add(jnp.sin(x[np.array([0, 2, 2])]))


def update_slice(x):
  inner = lax.dynamic_slice(x, (2,), (3,))
  return lax.dynamic_update_slice(x, 2 * inner + x[7], (2,))


def solve_triangular(x):
  matrix = jnp.tril(W) + 3 * jnp.eye(D)
  return jax.scipy.linalg.solve_triangular(matrix, x, lower=True)


def uneven(a, b):
  x = jnp.concatenate([b, a])
  return x[:3] * 2, x[3:] * x[:5].sum()


LAYERS = {
  "coupling stack": (coupling_stack, w, 1),
  "glow step": (glow_step, w, D),
  "masked autoregressive": (masked_autoregressive, w, 1),
  "tril inside": (triangular_inside, w, 1),
  "causal convolution": (causal_convolution, numbers(6, 2, 9, 2), 1),
  "1x1 convolution": (invertible_convolution, numbers(6, 2, 5, 2), 2),
  "channels by einsum": (channels_einsum, numbers(6, 2, 5, 2), 2),
  "squeeze and mix": (squeeze_and_mix, numbers(6, 2, 6, 2), 4),
  "batch of matrices": (batched_matrices, numbers(6, 4, 3, 4), 4),
  "masked multiply": (masked_multiply, w, 1),
  "scatter multiply": (scatter_coupling, w, 1),
  "scatter": (scatter_set, w, 1),
  "scatter add": (scatter_add, w, 1),
  "update slice": (update_slice, w, 1),
  "cumprod": (jnp.cumprod, w, 1),
  "reverse cumsum": (lambda x: lax.cumsum(x, reverse=True), w, 1),
  "triangular solve": (solve_triangular, w, 1),
  "rotation": (lambda x: x.reshape(4, 2) @ W[:2, :2], w, 2),
  "pad and crop": (lambda x: jnp.pad(x, (1, 2))[1:-2] * 3, w, 1),
  "pairs": (lambda x: jnp.sin(x) * x[::-1], w, 2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
  f, x, largest = LAYERS[name]
  assert max(block[2] for block in check(f, x)) == largest


def test_arrays_of_one_size_make_one_small_matrix_per_element():
  def rotate(a, b):
    return jnp.sin(a) - 0.5 * b, a * b + jnp.cos(b)

  assert check(rotate, w, v) == [("diagonal", D, 2)]


def test_uneven_arrays():
  a, b = w[:3], v[:5]
  sign, value = dense(uneven, a, b)
  result = jax.jit(log_det(uneven))(a, b)
  assert float(result.sign) == sign
  np.testing.assert_allclose(result.value, value, atol=1e-9)


# Loops and branches.

XS = numbers(7, 5, 3)
U, X = numbers(8, 3, 3), numbers(9, 3, 3)


def recurrence(xs):
  """The map from the inputs of an RNN to its outputs."""

  def step(h, x):
    h = jnp.tanh(X @ x + U @ h)
    return h, h

  return lax.scan(step, jnp.zeros(3), xs)[1]


def recurrence_of_two(a, b):
  def step(h, x):
    a, b = x
    h = jnp.tanh(h + a.sum())
    return h, (b * jnp.exp(a[:2]) + h[0], a * 2 + h)

  return lax.scan(step, jnp.zeros(3), (a, b), reverse=True)[1]


def rows_and_columns(image):
  """An MDRNN's input map: each pixel follows those above and to the left."""

  def row(above, xs):
    def pixel(left, x):
      x, above = x
      h = jnp.tanh(X @ x + U @ left + 0.3 * (U.T @ above))
      return h, h

    hs = lax.scan(pixel, jnp.zeros(3), (xs, above))[1]
    return hs, hs

  return lax.scan(row, jnp.zeros(image.shape[1:]), image)[1]


def cell_state(c):
  gates = jax.nn.sigmoid(numbers(10, 9, 3)), jax.nn.sigmoid(numbers(11, 9, 3))

  def step(c, x):
    forget, new = x
    return forget * c + (1 - forget) * new, None

  return lax.scan(step, c, gates)[0]


def carry_and_stack(c, xs):
  return lax.scan(
    lambda c, x: (c * jnp.exp(0.1 * x) + x, x * 2 + jnp.sin(c)), c, xs
  )


def masks_in_a_scan(x):
  mask = jnp.tril(jnp.ones((D, D)), -1)
  return lax.scan(
    lambda x, s: (x * jnp.exp(0.1 * ((W * mask) @ x)) * s, None),
    x,
    jnp.array([1.0, -2.0, 3.0]),
  )[0]


def while_loop(w, v):
  state = (0, w, v)
  return lax.while_loop(
    lambda s: s[0] < 4, lambda s: (s[0] + 1, *momentum(s[1], s[2])), state
  )[1:]


def branches(x):
  return lax.switch(jnp.array(1), [jnp.sin, lambda x: W @ x[::-1], jnp.exp], x)


def branch_by_value(x):
  return lax.cond(x[0] > 0, lambda x: -2 * x, lambda x: coupling(x), x)


LOOPS = {
  "recurrence": (recurrence, (XS,)),
  "two inputs, reversed": (recurrence_of_two, (XS, numbers(12, 5, 2))),
  "mdrnn": (rows_and_columns, (numbers(13, 3, 4, 3),)),
  "cell state": (cell_state, (U[0],)),
  "carry and outputs": (carry_and_stack, (U[0], XS)),
  "masks": (masks_in_a_scan, (w,)),
  "while": (while_loop, (w, v)),
  "switch": (branches, (w,)),
  "cond": (branch_by_value, (w,)),
  "cond, other branch": (branch_by_value, (-w,)),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_and_branches(name):
  f, args = LOOPS[name]
  (block,) = check(f, *args)
  assert block[0] in ("scan", "while", "cond")


def test_masks_are_seen_inside_of_a_scan():
  assert check(masks_in_a_scan, w) == [("scan", 3 * (D + D), 1)]


def test_a_long_scan_is_not_unrolled():
  def train(w, v):
    step = lambda state, _: (momentum(*state), None)
    return lax.scan(step, (w, v), None, length=1000)[0]

  program = jax.make_jaxpr(lambda w, v: log_det(train)(w, v).value)(w, v)
  assert len(str(program)) < 20_000
  result = jax.jit(log_det(train))(w, v)
  np.testing.assert_allclose(result.value, 1000 * D * np.log(0.9), rtol=1e-12)
  assert float(result.sign) == 1


def test_an_unknown_equation_is_refused_by_structure_and_dense_by_default():
  def solve(x):
    return jnp.linalg.solve(jnp.asarray(W) + 3 * jnp.eye(D), x)

  with pytest.raises(ValueError, match="linear_solve.*method='auto'"):
    log_det(solve, method="structure")(w)
  result = log_det(solve)(w)
  sign, value = dense(solve, w)
  assert result.method == "dense" and float(result.sign) == sign
  np.testing.assert_allclose(result.value, value, atol=1e-9)


SINGULAR = {
  "unused input": lambda x: jnp.concatenate([x[:7], x[:1] * 2]),
  "constant output": lambda x: jnp.concatenate([x[:7], jnp.ones(1)]),
  "the same twice": lambda x: (x[:4] + x[4:], x[:4] + x[4:]),
  "through a bottleneck": lambda x: jnp.sum(x) * W[0],
  "rounded": lambda x: jnp.round(x),
  "stopped": lambda x: lax.stop_gradient(x) * 2,
  "repeated elements": lambda x: x[np.array([0, 0, 1, 2, 3, 4, 5, 6])],
  "two of one": lambda x: (x[:4], 2 * x[:4]),
}


@pytest.mark.parametrize("name", SINGULAR)
def test_what_is_singular_at_every_point(name):
  result = log_det(SINGULAR[name])(w)
  assert float(result.value) == -np.inf
  assert float(result.sign) == 0


# Size.


def large_momentum(w, v):
  v = 0.9 * v - 0.1 * jax.grad(neighbours)(w)
  return w + 0.1 * v, v


def large_adamw(w, m, v):
  g = jax.grad(neighbours)(w)
  m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
  step = (m / (1 - 0.9**3)) / (jnp.sqrt(v / (1 - 0.99**3)) + 1e-8)
  return w - 0.01 * (step + 0.1 * w), m, v


def neighbours(w):
  return jnp.sum(jnp.tanh(w) ** 2) + 0.1 * jnp.sum(w[1:] * w[:-1])


def largest_array(closed):
  """The most elements of any array in a program."""
  program = inline(closed)
  assert not any(subprograms(equation) for equation in program.equations)
  return max(v.size for e in program.equations for v in e.outputs)


@pytest.mark.parametrize(
  ("f", "slots", "factor"),
  [(large_momentum, 2, 0.9), (large_adamw, 3, 0.9 * 0.99 * 0.999)],
)
def test_a_million_parameters(f, slots, factor):
  size = 10**6
  args = [jnp.linspace(0.1, 1.0, size) for _ in range(slots)]
  result = jax.jit(log_det(f))(*args)
  np.testing.assert_allclose(result.value, size * np.log(factor), rtol=1e-9)
  assert {(b.kind, b.largest) for b in result.report} == {("diagonal", 1)}
  program = jax.make_jaxpr(lambda *args: log_det(f)(*args).value)(*args)
  assert largest_array(program) == size


# Programs drawn at random.

N = 6


def _mix(x, s):
  return x + s * jnp.sum(jnp.sin(x))


def _shift(x, k):
  return jnp.roll(x, 1 + k % (N - 1))


def _permute(x, k):
  return x[np.random.default_rng(k).permutation(N)]


def _matrix(x, k):
  return numbers(k, N, N) @ x


def _sparse_matrix(x, k):
  keep = np.random.default_rng(k).random((N, N)) < 0.4
  return (numbers(k, N, N) * (keep | np.eye(N, dtype=bool))) @ x


def _triangle(x, k):
  return jnp.tril(jnp.asarray(numbers(k, N, N))) @ x + x


def _couple(x, k):
  a, b = jnp.split(x, [1 + k % (N - 1)])
  return jnp.concatenate([a, b * jnp.exp(0.3 * jnp.sum(jnp.sin(a))) + a[0]])


def _scatter(x, k):
  return x.at[k % N].multiply(1.5 + x[(k + 1) % N] ** 2)


def _leak(x, k):
  return jnp.where(x > 0.1 * k, x, -0.3 * x)


def _autoregressive(x, k):
  def step(carry, x):
    carry = jnp.tanh(carry + x + k)
    return carry, x * 2 + jnp.sin(carry)

  return lax.scan(step, jnp.zeros(()), x)[1]


def _repeat(x, k):
  kernel = numbers(k, N, N)
  step = lambda c, s: (c * jnp.exp(0.1 * jnp.cos(c)) * s + c @ kernel, None)
  return lax.scan(step, x, jnp.array([0.5, -1.0]))[0]


def _branch(x, k):
  return lax.cond(x[0] > 0, lambda x: _couple(x, k), lambda x: -x[::-1], x)


def _reversible(x, k):
  a, b = jnp.split(x, 2)
  a = a + jnp.tanh(numbers(k, 3, 3) @ b)
  return jnp.concatenate([b * a, a])


def _shuffle(x, k):
  rows = 2 + k % 2
  return x.reshape(rows, N // rows).T.reshape(N)


def _drop(x, k):
  return x.at[k % N].set(x[(k + 1) % N] * x[k % N])


def _constant(x, k):
  return x.at[k % N].set(k)


STEPS_OF_PROGRAMS = [
  lambda x, k: jnp.tanh(x) + 0.1 * k,
  lambda x, k: x + 0.5 * jnp.sin(x) * k,
  lambda x, k: jax.nn.softplus(x) - x * k,
  lambda x, k: x * jnp.exp(0.1 * x[::-1]),
  lambda x, k: jnp.cumsum(x) * (k - 2.5),
  lambda x, k: lax.cumprod(1 + 0.1 * x, reverse=True),
  lambda x, k: _mix(x, 0.2 * k),
  lambda x, k: jnp.max(x) * 0.1 + x,
  _shift,
  _permute,
  _matrix,
  _sparse_matrix,
  _triangle,
  _couple,
  _scatter,
  _leak,
  _autoregressive,
  _repeat,
  _branch,
  _reversible,
  _shuffle,
  _drop,
  _constant,
]
programs = st.lists(
  st.tuples(st.sampled_from(STEPS_OF_PROGRAMS), st.integers(0, 5)),
  min_size=1,
  max_size=5,
)
drawn = settings(
  deadline=None,
  derandomize=True,
  suppress_health_check=list(HealthCheck),
)


def check_program(steps, seed):
  def f(x):
    for step, k in steps:
      x = step(x, k)
    return x

  x = numbers(seed, N)
  result = jax.jit(log_det(f))(x)
  jacobian = np.asarray(jax.jit(jax.jacfwd(f))(x))
  sign, value = np.linalg.slogdet(jacobian)
  if result.value == -np.inf or np.linalg.cond(jacobian) > 1e12:
    # The dense one may be a product of rounding errors.
    assert result.sign == 0 or value < -15
    assert np.linalg.svd(jacobian)[1][-1] < 1e-10
  else:
    assert float(result.sign) == sign
    tolerance = 1e-14 * np.linalg.cond(jacobian) + 1e-9
    np.testing.assert_allclose(result.value, value, rtol=0, atol=tolerance)


@pytest.mark.slow
@settings(drawn, max_examples=8)
@given(programs, st.integers(0, 3))
def test_random_programs(steps, seed):
  check_program(steps, seed)


@pytest.mark.slow
@settings(drawn, max_examples=100)
@given(programs, st.integers(4, 9))
def test_many_random_programs(steps, seed):
  check_program(steps, seed)


def test_moved_elements_are_a_permutation():
  order = np.random.default_rng(0).permutation(7)

  def f(x):
    a, b = jnp.split(x[order][::-1], [3])
    return jnp.roll(jnp.concatenate([b, a]), 2)

  found = log_det(f, "structure")(jnp.arange(7.0))
  dense = np.linalg.slogdet(jax.jacfwd(f)(jnp.arange(7.0)))
  assert (found.value, found.sign) == (0, dense.sign)
  assert {block.kind for block in found.report} == {"permutation"}
  # One that loses an element is none.
  lost = lambda x: jnp.concatenate([x[:-1], x[:1]])
  assert log_det(lost, "structure")(jnp.arange(7.0)).value == -jnp.inf


def test_a_long_chain_of_elements_takes_no_matrix(monkeypatch):
  """One block of 10^5, found from the three entries of each row."""
  entries = []
  find = plan.find_components
  monkeypatch.setattr(
    plan,
    "find_components",
    lambda pattern: (entries.append(pattern.nnz), find(pattern))[1],
  )
  loss = lambda w: jnp.sum(jnp.cos(w)) + jnp.sum(jnp.diff(w) ** 2)
  step = lambda w: w - 0.1 * jax.grad(loss)(w)
  with pytest.raises(ValueError, match="a block of 100000 floats"):
    jax.eval_shape(log_det(step), jax.ShapeDtypeStruct((10**5,), "float32"))
  assert entries == [3 * 10**5 - 2]
