"""Laws that hold for every autoregressive model."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from revmom.models.autoregressive.autoregressive import Autoregressive
from revmom.models.autoregressive.causal_network import (
  positions_and_channels,
  uncached,
)
from revmom.models.autoregressive.conditional import (
  bernoulli,
  categorical,
  gaussian,
  mixture_of_logistics,
)
from revmom.models.autoregressive.gated_pixelcnn import gated_pixelcnn
from revmom.models.autoregressive.pixelcnn import pixelcnn
from revmom.models.autoregressive.wavenet import wavenet

# Name: how to build a small one given num_classes, and an event.
NETWORKS = {
  "wavenet": (
    lambda classes: wavenet((1, 2), 2, 4, 5, num_classes=classes),
    (4, 1),
  ),
  "stereo wavenet": (
    lambda classes: wavenet((1,), 3, 4, 5, num_classes=classes),
    (2, 2),
  ),
  "pixelcnn": (
    lambda classes: pixelcnn((3, 3), 4, num_classes=classes),
    (1, 2, 2),
  ),
  "gated pixelcnn": (
    lambda classes: gated_pixelcnn((3, 3), 4, num_classes=classes),
    (2, 2, 1),
  ),
}


CATEGORICAL, GAUSSIAN = categorical(3), gaussian(0.5)
KEY = jax.random.key(0)


@functools.cache
def build(name, conditional, num_classes=0):
  """A model, random parameters without zeros, and the shape of an event."""
  make, event = NETWORKS[name]
  model = Autoregressive(make(num_classes), conditional)
  floats = conditional is GAUSSIAN
  x = jax.ShapeDtypeStruct((1, *event), jnp.float32 if floats else jnp.int32)
  like = jax.eval_shape(model.init, jax.random.key(0), x)
  rng = np.random.default_rng(0)
  draw = lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype) * 0.5
  return model, jax.tree.map(draw, like), event


def all_events(levels, event):
  values = itertools.product(range(levels), repeat=int(np.prod(event)))
  return np.array(list(values), np.int32).reshape(-1, *event)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
  ("name", "conditional", "levels"),
  [
    ("wavenet", CATEGORICAL, 3),
    ("stereo wavenet", mixture_of_logistics(2, 3), 3),
    ("pixelcnn", CATEGORICAL, 3),
    ("gated pixelcnn", bernoulli(), 2),
  ],
)
def test_it_is_a_distribution_and_samples_follow_it(name, conditional, levels):
  model, params, event = build(name, conditional)
  events = all_events(levels, event)
  probabilities = np.exp(
    np.asarray(jax.jit(model.log_prob)(params, events), np.float64)
  )
  np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-5)
  count = 20000
  draw = jax.jit(lambda key: model.sample(key, params, (count, *event)))
  drawn = np.asarray(draw(jax.random.key(3)))
  assert drawn.dtype == np.int32
  place = levels ** np.arange(np.prod(event))[::-1]
  frequencies = np.bincount(
    drawn.reshape(count, -1) @ place, minlength=len(events)
  )
  expected = count * probabilities
  # Pearson's statistic has mean and half variance as many degrees of freedom.
  often = expected > 5
  statistic = ((frequencies - expected) ** 2 / expected)[often].sum()
  freedom = often.sum()
  assert often.sum() > 5
  assert statistic < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NETWORKS)
def test_cached_generation_draws_what_whole_passes_draw(name):
  """With classes, in two batch axes, and the density of each is finite."""
  model, params, event = build(name, GAUSSIAN, num_classes=3)
  shape = 2, 3, *event
  label = np.int32([2, 0, 1])

  @jax.jit
  def run(key, params):
    slow = model._replace(network=uncached(model.network))
    drawn = model.sample(key, params, shape, label)
    again = slow.sample(key, params, shape, label)
    return drawn, again, model.log_prob(params, drawn, label)

  drawn, again, log_prob = run(jax.random.key(1), params)
  np.testing.assert_allclose(drawn, again, rtol=1e-4, atol=1e-5)
  assert log_prob.shape == (2, 3) and np.isfinite(log_prob).all()
  # The density of one alone, and the noise that made it.
  one = jax.jit(model.log_prob)(params, drawn[1, 2], label[2])
  np.testing.assert_allclose(one, log_prob[1, 2], rtol=1e-5)


def test_completions_follow_the_conditional_distribution():
  model, params, event = build("gated pixelcnn", bernoulli())
  events = all_events(2, event)  # [16, 2, 2, 1]
  known = np.array([[True, True], [False, False]])[..., None]
  start = np.array([1, 0])
  matches = (events[:, 0, :, 0] == start).all(-1)
  log_probs = np.asarray(jax.jit(model.log_prob)(params, events))[matches]
  expected = np.exp(log_probs) / np.exp(log_probs).sum()
  x = np.full((20000, *event), 7, np.uint8)  # 7 is nothing to be seen
  x[:, 0, :, 0] = start
  drawn = np.asarray(
    jax.jit(lambda key: model.complete(key, params, x, known))(
      jax.random.key(0)
    )
  )
  assert drawn.dtype == np.uint8
  np.testing.assert_array_equal(drawn[:, 0], x[:, 0])
  frequencies = np.bincount(drawn[:, 1, :, 0] @ [2, 1], minlength=4) / len(x)
  deviation = np.sqrt(expected * (1 - expected) / len(x))
  assert (np.abs(frequencies - expected) < 5 * deviation).all()


def test_given_floats_are_kept_to_the_bit():
  model, params, event = build("wavenet", GAUSSIAN)
  x = jax.random.normal(jax.random.key(0), (2, *event))
  known = np.array([False, True, False, True])[:, None]
  complete = jax.jit(lambda key: model.complete(key, params, x, known))
  drawn = complete(jax.random.key(1))
  np.testing.assert_array_equal(drawn[:, 1::2], x[:, 1::2])
  assert (np.asarray(drawn[:, ::2]) != np.asarray(x[:, ::2])).all()


@pytest.mark.slow
def test_a_model_learns_a_known_distribution():
  """A chain of three symbols; samples have its pairs."""
  transition = np.float32([[0.1, 0.6, 0.3], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6]])
  rng = np.random.default_rng(0)
  chains = [rng.integers(3, size=512)]
  for _ in range(7):
    uniform = rng.uniform(size=(512, 1))
    above = uniform > transition.cumsum(1)[chains[-1], :2]
    chains.append(above.sum(1))
  data = np.stack(chains, 1)[..., None].astype(np.int32)
  model = Autoregressive(wavenet((1,), 2, 8, 8), CATEGORICAL)
  params = model.init(jax.random.key(0), data)
  optimizer = optax.sgd(0.2, momentum=0.9)
  loss = lambda params: -jnp.mean(model.log_prob(params, data)) / 8

  def step(carry, _):
    params, state = carry
    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state)
    return (optax.apply_updates(params, updates), state), value

  @jax.jit
  def run(params):
    carry = params, optimizer.init(params)
    (params, _), values = jax.lax.scan(step, carry, length=200)
    return values, model.sample(jax.random.key(1), params, (4096, 8, 1))

  values, drawn = run(params)
  entropies = -(transition * np.log(transition)).sum(1)
  stationary = np.linalg.matrix_power(transition, 64)[0]
  entropy = (np.log(3) + 7 * stationary @ entropies) / 8
  assert abs(float(values[-1]) - entropy) < 0.02
  pairs = np.zeros((3, 3))
  drawn = np.asarray(drawn)[..., 0]
  np.add.at(pairs, (drawn[:, :-1].ravel(), drawn[:, 1:].ravel()), 1)
  learned = pairs / pairs.sum(1, keepdims=True)
  np.testing.assert_allclose(learned, transition, atol=0.05)


@pytest.mark.slow
def test_vmap_over_models_and_keys():
  model, params, event = build("pixelcnn", CATEGORICAL)
  several = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), params)
  keys = jax.random.split(jax.random.key(0), 2)
  sample = lambda key, params: model.sample(key, params, (3, *event))
  drawn = jax.jit(jax.vmap(sample))(keys, several)
  log_probs = jax.jit(jax.vmap(model.log_prob))(several, drawn)
  halved = jax.tree.map(lambda leaf: 0.5 * leaf, params)
  np.testing.assert_array_equal(drawn[1], jax.jit(sample)(keys[1], halved))
  np.testing.assert_allclose(
    log_probs[1], jax.jit(model.log_prob)(halved, drawn[1]), rtol=1e-5
  )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wavenet", "pixelcnn", "gated pixelcnn"])
def test_bfloat16(name):
  model, params, event = build(name, CATEGORICAL)
  short = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  # The same numbers in float32.
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), short)

  @jax.jit
  def run(params):
    drawn = model.sample(jax.random.key(0), params, (64, *event))
    loss = lambda params: jnp.sum(model.log_prob(params, drawn))
    return drawn, loss(params), jax.grad(loss)(params)

  drawn, loss, gradient = run(short)
  assert loss.dtype == jnp.float32
  for leaf, its_gradient in zip(
    *map(jax.tree.leaves, (short, gradient)), strict=True
  ):
    assert its_gradient.dtype == leaf.dtype == jnp.bfloat16
    assert np.isfinite(its_gradient).all()
  log_prob = jax.jit(lambda p: jnp.sum(model.log_prob(p, drawn)))
  np.testing.assert_allclose(loss, log_prob(params), rtol=0.02)


def test_positions_and_channels():
  assert positions_and_channels((3, 4, 2)) == (12, 2)
  assert positions_and_channels((3, 4)) == (3, 4)
  assert positions_and_channels((3,)) == (3, 1)


def test_labels_are_checked():
  model, params, event = build("wavenet", CATEGORICAL, num_classes=4)
  plain, plain_params, _ = build("wavenet", CATEGORICAL)
  x = np.zeros((2, *event), np.int32)
  with pytest.raises(ValueError, match="got no label"):
    jax.eval_shape(model.log_prob, params, x)
  with pytest.raises(ValueError, match="has no classes"):
    jax.eval_shape(plain.log_prob, plain_params, x, np.int32([0, 1]))
  with pytest.raises(ValueError, match="expected integers"):
    jax.eval_shape(model.log_prob, params, x, np.float32([0, 1]))
  with pytest.raises(ValueError, match=r"labels of shape \(2, 1\)"):
    jax.eval_shape(model.log_prob, params, x, np.int32([[0], [1]]))
  # What is no class has no density, rather than that of another class.
  labels = np.int32([0, 4, -1])
  x = np.zeros((3, *event), np.int32)
  log_prob = jax.jit(model.log_prob)(params, x, labels)
  np.testing.assert_array_equal(np.isnan(log_prob), [False, True, True])


def test_errors():
  model, params, event = build("pixelcnn", CATEGORICAL)
  x = np.zeros((2, *event), np.int32)
  with pytest.raises(ValueError, match=r"expected \[\*batch, \*event\]"):
    jax.eval_shape(model.log_prob, params, x[0, 0])
  with pytest.raises(ValueError, match=r"expected \[\*batch, \*event\]"):
    jax.eval_shape(lambda p: model.sample(KEY, p, (4, 4)), params)
  with pytest.raises(ValueError, match=r"expected \[B, H, W, 2\]"):
    jax.eval_shape(model.log_prob, params, x[..., :1])
  with pytest.raises(ValueError, match="expected integers in 0, ..., 2"):
    jax.eval_shape(model.log_prob, params, x.astype(np.float32))
  with pytest.raises(ValueError, match="expected booleans"):
    jax.eval_shape(model.complete, KEY, params, x, np.ones(event))
  with pytest.raises(ValueError, match="expected integers in 0, ..., 2"):
    known = np.ones(event, bool)
    floats = x.astype(np.float32)
    jax.eval_shape(model.complete, KEY, params, floats, known)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_has_no_elements(name):
  model, params, event = build(name, CATEGORICAL)
  for shape, batch in (
    ((0, *event), (0,)),
    ((2, 0, *event[1:]), (2,)),
    ((3, 0, *event), (3, 0)),
  ):
    x = jnp.zeros(shape, jnp.int32)
    log_probs = model.log_prob(params, x)
    np.testing.assert_array_equal(log_probs, np.zeros(batch))
    assert model.sample(KEY, params, shape).shape == shape
    assert model.complete(KEY, params, x, x > 0).dtype == jnp.int32


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", NETWORKS)
def test_arrays_of_numpy(name):
  model, params, event = build(name, CATEGORICAL, 2)
  shape, label = (2, *event), np.array([0, 1])
  drawn = model.sample(KEY, params, shape, label)
  host = jax.device_get(params)
  np.testing.assert_array_equal(model.sample(KEY, host, shape, label), drawn)
  np.testing.assert_array_equal(
    model.log_prob(host, np.asarray(drawn), label),
    model.log_prob(params, drawn, label),
  )


@pytest.mark.parametrize("other", [categorical(2), bernoulli()])
def test_parameters_for_another_conditional_are_refused(other):
  model, params, event = build("pixelcnn", categorical(4))
  model = model._replace(conditional=other)
  with pytest.raises(ValueError, match="the network's parameters are for"):
    model.log_prob(params, jnp.zeros((2, *event), jnp.int32))
  with pytest.raises(ValueError, match="the network's parameters are for"):
    model.sample(KEY, params, (2, *event))


@pytest.mark.parametrize("name", ["wavenet", "gated pixelcnn"])
def test_ranks_may_be_promoted_by_the_library(name):
  model, params, event = build(name, CATEGORICAL, 2)
  shape, label = (2, *event), jnp.array([0, 1])

  def program(params):
    x = model.sample(KEY, params, shape, label)
    return jax.grad(lambda p: model.log_prob(p, x, label).sum())(params)

  with jax.numpy_rank_promotion("raise"):
    got = jax.jit(program)(params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6),
    got,
    jax.jit(program)(params),
  )
