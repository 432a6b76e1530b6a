"""Members of the family, beside the recurrences of their papers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from revmom import depth

NUMBER, BATCH, WIDTH = 8, 3, 4


def block(layer, x):
  return jnp.tanh(x @ layer["w"] + layer["b"])


def layers_of(number, dtype):
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  layers = {"w": normal(number, WIDTH, WIDTH) / 3, "b": normal(number, WIDTH)}
  return layers, normal(BATCH, WIDTH)


def both_gradients(ours, theirs, layers, x):
  """Values and gradients of two functions of (layers, x)."""
  loss = lambda f: (
    lambda *args: (lambda out: (jnp.sum(jnp.sin(out)), out))(f(*args))
  )
  return jax.jit(
    lambda: [
      jax.value_and_grad(loss(f), (0, 1), has_aux=True)(layers, x)
      for f in (ours, theirs)
    ]
  )()


def test_bdia_is_the_recurrence_of_two_steps(x64):
  layers, x = layers_of(NUMBER, "float64")
  rng = np.random.default_rng(1)
  gammas = jnp.asarray(rng.choice([-0.5, 0.5], (NUMBER, BATCH, 1)))

  def ours(layers, x):
    first = block(jax.tree.map(lambda a: a[0], layers), x)
    rest = jax.tree.map(lambda a: a[1:], layers)
    rest |= {"signs": depth.bdia_signs(gammas[1:])}
    updates = depth.bdia(block, lambda layer: layer["signs"])
    carry = first, x + first
    return depth.reversible_scan(updates, carry, rest, integer="int64")[1]

  def theirs(layers, x):
    h = lambda k, x: block(jax.tree.map(lambda a: a[k], layers), x)
    before, now = x, x + h(0, x)
    for k in range(1, NUMBER):
      g = gammas[k]
      later = g * before + (1 - g) * now + (1 + g) * h(k, now)
      before, now = now, later
    return now

  got, expected = both_gradients(ours, theirs, layers, x)
  chex.assert_trees_all_close(got, expected, rtol=1e-11, atol=1e-12)


def test_bdia_of_many_blocks_comes_back():
  """In two hundred blocks the buffer spills 25 words an element."""
  layers, x = layers_of(200, "float32")
  key = jax.random.key(0)

  @jax.jit
  def gradient(x):
    gammas = jax.random.rademacher(key, (200, BATCH, 1), x.dtype) / 2
    own = layers | {"signs": depth.bdia_signs(gammas)}
    updates = depth.bdia(
      lambda layer, x: 0.1 * block(layer, x), lambda layer: layer["signs"]
    )
    of = lambda x: depth.reversible_scan(updates, (0 * x, x), own)[1]
    return jax.grad(lambda x: jnp.sum(of(x) ** 2))(x)

  assert bool(jnp.isfinite(gradient(x)).all())


def test_asynchronous_leapfrog(x64):
  layers, x = layers_of(NUMBER, "float64")
  h = 0.3
  alternating = jnp.cumprod(-jnp.ones(NUMBER))

  def ours(layers, x):
    updates = depth.asynchronous_leapfrog(block, h, lambda layer: layer["sign"])
    v = block(jax.tree.map(lambda a: a[0], layers), x)
    carry = v, x + h / 2 * v
    layers = layers | {"sign": alternating}
    w, x = depth.reversible_scan(updates, carry, layers, integer="int64")
    return x - h / 2 * alternating[-1] * w

  def theirs(layers, x):
    def step(carry, layer):
      v, x = carry
      middle = x + h / 2 * v
      v = 2 * block(layer, middle) - v
      return (v, middle + h / 2 * v), None

    v = block(jax.tree.map(lambda a: a[0], layers), x)
    return lax.scan(step, (v, x), layers)[0][1]

  got, expected = both_gradients(ours, theirs, layers, x)
  chex.assert_trees_all_close(got, expected, rtol=1e-11, atol=1e-12)


def test_errors():
  with pytest.raises(ValueError, match="-0.5 or 0.5 for each"):
    depth.bdia_signs(jnp.array([0.5, 0.0]))
  for build in (
    lambda: depth.leapfrog(block, "adaptive"),
    lambda: depth.asynchronous_leapfrog(block, None, lambda layer: 1),
    lambda: depth.momentum(block, None),
  ):
    with pytest.raises(ValueError, match="adapts to the carry"):
      build()


class Attention(nnx.Module):
  """A layer's first stream: normalised, attended to, dropped out."""

  def __init__(self, width, rngs):
    self.norm = nnx.LayerNorm(width, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(
      2, width, decode=False, deterministic=False, rngs=rngs
    )
    self.dropout = nnx.Dropout(0.2, rngs=rngs)

  def __call__(self, x):
    return self.dropout(self.attention(self.norm(x)))


def test_nnx_modules_with_attention_and_dropout():
  """Their keys are among the layers, so that they come back as they were."""
  number, width = 3, 4
  create = nnx.vmap(lambda rngs: Attention(width, rngs))
  graph, layers = nnx.split(create(nnx.Rngs(0).split(number)))
  f = lambda layer, x: nnx.merge(graph, layer)(x)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 5, width)), "float32")

  def ours(layers, x):
    return depth.reversible_scan(depth.momentum(f, 0.5), (x, x), layers)[1]

  def theirs(layers, x):
    def step(carry, layer):
      v, x = carry
      v = 0.5 * v + 0.5 * f(layer, x)
      return (v, x + v), None

    return lax.scan(step, (x, x), layers)[0][1]

  floats, join = parts(layers)
  got, expected = both_gradients(
    lambda floats, x: ours(join(floats), x),
    lambda floats, x: theirs(join(floats), x),
    floats,
    x,
  )
  chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=2e-6)


def parts(layers):
  """The floats of layers, and how to put them back."""
  leaves, tree = jax.tree.flatten(layers)
  places = [
    i for i, a in enumerate(leaves) if jnp.issubdtype(a.dtype, jnp.floating)
  ]

  def join(floats):
    own = list(leaves)
    for i, value in zip(places, floats, strict=True):
      own[i] = value
    return tree.unflatten(own)

  return [leaves[i] for i in places], join
