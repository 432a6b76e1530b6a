"""Inverses of random compositions: right, NaN or refused, never another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.jacobian import NotInvertible, inverse

SIZE, HALF = 6, 3


def elementwise(rng):
  a, b = rng.uniform(0.5, 2) * rng.choice([-1, 1]), rng.normal()
  choices = {
    "affine": lambda x: a * x + b,
    "x / a": lambda x: x / a,
    "b - x": lambda x: b - x,
    "sinh": lambda x: jnp.sinh(x / 2),
    "arcsinh": jnp.arcsinh,
    "arctan": jnp.arctan,
    "erf": lambda x: jax.scipy.special.erf(x / 3),
    "exp": lambda x: jnp.exp(x / 3),
    "expm1": lambda x: jnp.expm1(x / 3),
    "1 / exp": lambda x: 1 / jnp.exp(x / 4),
    "power": lambda x: jnp.exp(x / 4) ** a,
    "cube": lambda x: (x / 2) ** 3,
    "cbrt": jnp.cbrt,
    "sigmoid": jax.nn.sigmoid,
    "tanh": lambda x: jnp.tanh(x / 3),
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.3),
    "x + tanh": lambda x: x + jnp.tanh(x),
    "x + round": lambda x: x + jnp.round(x),
    "gelu": jax.nn.gelu,
  }
  name = rng.choice(list(choices))
  return name, choices[name]


def of_others(rng, inputs, outputs):
  functions = jnp.sin, jnp.tanh, jnp.square, jnp.abs, jax.nn.relu, jnp.round
  function = functions[rng.integers(len(functions))]
  weights = rng.normal(size=(outputs, inputs)) / inputs**0.5
  return lambda x: function(weights @ x)


def shift(rng):
  k = rng.integers(1, SIZE)
  some, more = of_others(rng, k, SIZE - k), of_others(rng, HALF, HALF)
  every = of_others(rng, SIZE, SIZE)
  mask = (rng.random(SIZE) < 0.5).astype(float)

  def autoregressive(x):
    ys = [x[0]]
    for i in range(1, SIZE):
      ys.append(x[i] * jnp.exp(jnp.sin(x[i - 1])) + ys[-1])
    return jnp.stack(ys)

  def masked(x):
    seen = every(mask * x)
    return mask * x + (1 - mask) * (x * jnp.exp(jnp.tanh(seen)) + seen)

  choices = {
    "added": lambda x: jnp.concatenate([x[:k], x[k:] + some(x[:k])]),
    "scaled": lambda x: jnp.concatenate(
      [x[:k], x[k:] * jnp.exp(jnp.tanh(some(x[:k])))]
    ),
    "added under a mask": lambda x: x + mask * every((1 - mask) * x),
    "scaled under a mask": masked,
    "scattered": lambda x: x.at[1::2].add(more(x[::2])),
    "autoregressive": autoregressive,
  }
  name = rng.choice(list(choices))
  return name, choices[name]


def move(rng):
  order = rng.permutation(SIZE)
  choices = {
    "permuted": lambda x: x[order],
    "scattered": lambda x: jnp.zeros_like(x).at[order].set(x),
    "flipped": lambda x: x[::-1],
    "rolled": lambda x: jnp.roll(x, 2),
    "transposed": lambda x: x.reshape(2, HALF).T.ravel(),
    "stacked": lambda x: jnp.stack([x[:HALF], x[HALF:]], 1).reshape(-1),
  }
  name = rng.choice(list(choices))
  return name, choices[name]


def mask(rng):
  mask, k = rng.random(SIZE) < 0.5, rng.integers(1, SIZE)
  (a, f), (b, g) = elementwise(rng), elementwise(rng)
  if rng.random() < 0.5:
    return f"where({a}, {b})", lambda x: jnp.where(mask, f(x), g(x))
  return (
    f"[{a}, {b}]",
    lambda x: jnp.concatenate([f(x[:k]), g(x[k:])]),
  )


def linear(rng):
  lower = np.tril(rng.normal(size=(SIZE, SIZE)) / 3, -1)
  lower += np.diag(rng.uniform(0.5, 2, SIZE))
  upper, singular = lower[::-1, ::-1], lower.copy()
  singular[HALF, HALF] = 0
  low_rank = rng.normal(size=(SIZE, 2)) @ rng.normal(size=(2, SIZE))
  choices = {
    "lower": lambda x: lower @ x,
    "upper": lambda x: upper @ x,
    "L U": lambda x: (lower @ upper) @ x,
    "P L U": lambda x: jnp.eye(SIZE)[::-1] @ (lower @ (upper @ x)),
    "x L": lambda x: x @ lower,
    "x + L x": lambda x: x + lower @ x,
    "columns": lambda x: (upper[:2, :2] @ x.reshape(2, HALF)).ravel(),
    "einsum": lambda x: jnp.einsum(
      "ij,jk->ik", lower[:HALF, :HALF], x.reshape(HALF, 2)
    ).ravel(),
    "convolved": lambda x: jnp.convolve(x, np.array([1, 0.4, -0.3]))[:SIZE],
    "singular": lambda x: singular @ x,
    "of low rank": lambda x: low_rank @ x,
  }
  name = rng.choice(list(choices))
  return name, choices[name]


def total(rng):
  step = lambda carry, x: (x + carry / 2,) * 2
  choices = {
    "cumsum": jnp.cumsum,
    "cumsum from behind": lambda x: jax.lax.cumsum(x, reverse=True),
    "cumsum of rows": lambda x: jnp.cumsum(x.reshape(2, HALF), 1).ravel(),
    "differences": lambda x: jnp.concatenate([x[:1], jnp.diff(x)]),
    "scan": lambda x: jax.lax.scan(step, 0.0, x)[1],
  }
  name = rng.choice(list(choices))
  return name, choices[name]


PARTS = elementwise, shift, move, mask, linear, total


def composition(seed):
  """Of up to four functions, its name, and two random points."""
  rng = np.random.default_rng(seed)
  parts = [PARTS[k](rng) for k in rng.integers(len(PARTS), size=2 + seed % 3)]
  f = lambda x: functools.reduce(lambda x, part: part[1](x), parts, x)
  points = jnp.asarray(rng.normal(size=(2, SIZE)))
  return "; ".join(name for name, _ in parts), f, points


@pytest.mark.parametrize(
  "seeds", [range(5), pytest.param(range(5, 200), marks=pytest.mark.slow)]
)
def test_right_or_refused(x64, seeds):
  """At images and anywhere else: what comes back is finite only if right."""
  found = 0
  for seed in seeds:
    name, f, (x, other) = composition(seed)
    y = f(x)
    try:
      back, elsewhere = jax.vmap(inverse(f))(jnp.stack([y, other]))
    except NotInvertible:
      continue
    found += 1
    error = np.abs(back - x).max()
    assert error < 1e-8, (seed, name, error)
    if np.isfinite(elsewhere).all():
      error = np.abs(f(elsewhere) - other).max()
      assert error < 1e-8 * (1 + np.abs(other).max()), (seed, name, error)
  # Others are singular, have steps, or use an unknown value twice.
  assert found >= len(seeds) / 5
