"""Different optimizers for different parameters, and averages."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import revmom

STEPS = 60


def problem():
  rng = np.random.default_rng(1)
  params = {
    "dense": {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)},
    "bias": jnp.zeros(3),
  }
  x = jnp.asarray(rng.normal(size=(STEPS, 8, 4)), jnp.float32)

  def loss(params, x):
    return jnp.mean((jnp.tanh(x @ params["dense"]["w"]) + params["bias"]) ** 2)

  return params, loss, x


def labels(params):
  return {"dense": "matrix", "bias": "vector"}


def two():
  return revmom.partition(
    {
      "matrix": revmom.adamw(0.01, weight_decay=0.1),
      "vector": revmom.sgd(0.1, {"dense": 0.5, "bias": 0.8}),
    },
    labels,
  )


def follow(optimizer, transformation):
  params, loss, x = problem()

  def step(carry, x):
    params, state = carry
    updates, state = transformation.update(
      jax.grad(loss)(params, x), state, params
    )
    params = optax.apply_updates(params, updates)
    return (params, state), params

  @jax.jit
  def both(params):
    run = revmom.train(loss, optimizer, params, x)
    back = revmom.rewind(loss, optimizer, run.state, x)
    start = params, transformation.init(params)
    return run, back.receipt.ok, jax.lax.scan(step, start, x)

  with jax.numpy_dtype_promotion("standard"):
    run, ok, ((expected, _), path) = both(params)
  assert bool(ok)
  for own, theirs in zip(
    jax.tree.leaves(run.params), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(own, theirs, rtol=0, atol=2e-5)
  return run, path


@pytest.mark.slow
def test_each_label_follows_its_own_optimizer():
  follow(
    revmom.clipped(two(), 0.05),
    optax.chain(
      optax.clip_by_global_norm(0.05),
      optax.multi_transform(
        {
          "matrix": optax.adamw(0.01, weight_decay=0.1),
          "vector": optax.sgd(0.1, 0.8),
        },
        labels,
      ),
    ),
  )


def test_clipping_of_each_array():
  thresholds = {"dense": 0.02, "bias": 0.01}
  clip = lambda g, c: g * jnp.minimum(1, c / jnp.linalg.norm(g))
  follow(
    revmom.clipped(revmom.sgd(0.1, 0.9), thresholds),
    optax.chain(
      optax.stateless(
        lambda g, _: {
          "dense": {"w": clip(g["dense"]["w"], 0.02)},
          "bias": clip(g["bias"], 0.01),
        }
      ),
      optax.sgd(0.1, 0.9),
    ),
  )


@pytest.mark.slow
def test_log_det_adds_up():
  params, _, _ = problem()
  optimizer = two()
  state = optimizer.init(params, num_steps=5)
  for _ in range(5):
    state = optimizer.forward(state, lambda p: p)
  per_step = 12 * (np.log(0.9) + np.log(0.999) + np.log1p(-1e-3))
  per_step += 3 * np.log(0.8)
  np.testing.assert_allclose(optimizer.log_det(state), 5 * per_step, rtol=1e-5)
  shapes = {len(leaf.integers) - 1 for leaf in state.leaves}
  assert shapes == {1, 2}


@pytest.mark.slow
def test_every_part_differentiates():
  params, loss, x = problem()

  def final(optimizer):
    return loss(revmom.train(loss, optimizer, params, x).params, x[0])

  bars = jax.jit(jax.grad(final))(two())
  leaves = jax.tree.leaves(bars)
  assert len(leaves) == 8  # lr, b1, b2, eps, decay; lr and two momenta
  matrix, vector = bars.optimizers["matrix"], bars.optimizers["vector"]
  assert float(matrix.learning_rate) != 0
  assert float(vector.momentum["bias"]) != 0
  assert float(vector.momentum["dense"]) == 0  # another label's


def test_as_optax():
  params, loss, x = problem()
  transformation = revmom.as_optax(two(), num_steps=10)
  state = transformation.init(params)
  start = params = transformation.params(state)
  gradient = jax.grad(loss)

  @jax.jit
  def forward(params, state, x):
    updates, state = transformation.update(gradient(params, x), state, params)
    return optax.apply_updates(params, updates), state

  @jax.jit
  def inverse(state, x):
    return transformation.inverse(state, lambda p: gradient(p, x))

  for t in range(10):
    params, state = forward(params, state, x[t])
  for t in reversed(range(10)):
    params, state = inverse(state, x[t])
  jax.tree.map(np.testing.assert_array_equal, params, start)


def test_errors():
  sgd = revmom.sgd(0.1, 0.9)
  with pytest.raises(ValueError, match="labelled other, .* for sgd only"):
    revmom.partition({"sgd": sgd}, lambda p: "other").init(jnp.ones(2), 1)
  coarse = revmom.sgd(0.1, 0.9, grid=revmom.Grid({"params": 20}))
  with pytest.raises(ValueError, match="agree on the fraction bits"):
    revmom.partition({"a": sgd, "b": coarse}, lambda p: "a")
  with pytest.raises(
    ValueError, match=r"revmom\.clipped or revmom\.preprocessed"
  ):
    revmom.partition({"a": revmom.clipped(sgd, 1.0)}, lambda p: "a")
  some = {"a": sgd, "b": revmom.averaged(sgd, 0.9)}
  with pytest.raises(ValueError, match="some of the optimizers keep"):
    revmom.partition(some, lambda p: "a")
  with pytest.raises(ValueError, match="no weight"):
    revmom.averaged(sgd, 1.0)
  with pytest.raises(ValueError, match=r"decay=1.5.*\(0, 1\]"):
    revmom.averaged(sgd, 1.5)
  with pytest.raises(ValueError, match="keeps no average"):
    sgd.average_params(sgd.init(jnp.ones(2), 1))


POLYAK = lambda t: (t + 1) / (t + 2)  # noqa: E731


@pytest.mark.parametrize(
  "base, decay",
  [
    pytest.param("sgd", 0.9, id="sgd-ema"),
    pytest.param("sgd", POLYAK, id="sgd-polyak", marks=pytest.mark.slow),
    pytest.param("partition", 0.9, id="partition-ema", marks=pytest.mark.slow),
    pytest.param(
      "partition", POLYAK, id="partition-polyak", marks=pytest.mark.slow
    ),
  ],
)
def test_averages(decay, base):
  if base == "sgd":
    optimizer = revmom.averaged(revmom.sgd(0.1, 0.9), decay)
    run, path = follow(optimizer, optax.sgd(0.1, 0.9))
  else:
    optimizer = revmom.averaged(two(), decay)
    run, path = follow(
      optimizer,
      optax.multi_transform(
        {
          "matrix": optax.adamw(0.01, weight_decay=0.1),
          "vector": optax.sgd(0.1, 0.8),
        },
        labels,
      ),
    )
  weights = np.ones(STEPS)
  if decay is not POLYAK:
    weights = 0.9 ** np.arange(STEPS)[::-1]
  mean = lambda values: np.average(values, axis=0, weights=weights)
  expected = jax.tree.map(mean, path)
  for average in (run.average, optimizer.average_params(run.state)):
    for own, theirs in zip(
      jax.tree.leaves(average), jax.tree.leaves(expected), strict=True
    ):
      np.testing.assert_allclose(own, theirs, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_gradients_go_through_the_average(x64):
  """Central differences, in 64 bits, of the averaged parameters' loss."""
  params, loss, x = jax.tree.map(
    lambda a: a.astype("float64") if hasattr(a, "astype") else a, problem()
  )

  def final(rate, decay):
    optimizer = revmom.averaged(
      revmom.sgd(0.1, 0.9, grid=revmom.Grid(integer="int64")), 0.9
    )
    optimizer = optimizer.replace(learning_rate=rate, average=decay)
    return loss(revmom.train(loss, optimizer, params, x).average, x[0])

  final = jax.jit(final)
  at = jnp.array(0.1, "float64"), jnp.array(0.9, "float64")
  bars = jax.grad(final, (0, 1))(*at)
  step = 1e-6
  for i, bar in enumerate(bars):
    ends = [
      final(*(a + sign * step * (j == i) for j, a in enumerate(at)))
      for sign in (1, -1)
    ]
    slope = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(bar, slope, rtol=1e-5)


@pytest.mark.parametrize(
  "name", ["nesterov", "lion", "lars", "lamb", "adamax", "amsgrad"]
)
def test_what_has_no_inverse_says_why(name):
  with pytest.raises(
    ValueError, match=f"{name} has no explicit inverse: .*Use"
  ):
    getattr(revmom, name)(0.1)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["function", "tree", "integers"])
def test_partitions_inside_of_a_partition(kind):
  """The same steps as one flat partition."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = {"w": draw(3, 2), "b": draw(2), "s": draw(4), "t": draw(2, 2)}
  sgd = revmom.sgd(0.1, 0.5)
  adam = revmom.adam(0.1)
  deep, plain = (0, 1) if kind == "integers" else ("deep", "plain")
  named = {"w": deep, "b": deep, "s": plain, "t": plain}
  labels = (lambda params: named) if kind == "function" else named
  nested = revmom.partition({deep: revmom.muon(0.1), plain: sgd}, labels)
  nested = revmom.partition(
    {"all": nested, "none": adam}, jax.tree.map(lambda _: "all", params)
  )
  flat = revmom.partition(
    {"muon": revmom.muon(0.1).optimizers["matrices"], "adam": adam, "sgd": sgd},
    {"w": "muon", "b": "adam", "s": "sgd", "t": "sgd"},
  )

  @jax.jit  # an optimizer is an argument, so its labels must be hashable
  def after(optimizer):
    start = optimizer.init(params, 2)
    state = optimizer.forward(start, lambda p: p)
    back = optimizer.inverse(state, lambda p: p)
    return optimizer.params(state), back, start

  got, back, start = after(nested)
  chex.assert_trees_all_equal(got, after(flat)[0])
  chex.assert_trees_all_equal(back, start)


def test_labels_that_do_not_fit():
  sgd = revmom.sgd(0.1, 0.5)
  params = {"w": jnp.ones(2), "b": jnp.ones(2)}
  for labels, match in [
    ({"w": 1}, "labels are"),
    ({"w": 1, "b": 2}, "labelled 2"),
  ]:
    with pytest.raises(ValueError, match=match):
      revmom.partition({1: sgd}, labels).init(params)
  with pytest.raises(ValueError, match="no label"):
    revmom.partition({1: sgd}, {"w": 1.5, "b": 1})
