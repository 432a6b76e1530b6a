"""Both ways to a Hessian-vector product give the same pullback."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from revmom.training import second_order


def loss_fn(params, others):
  hidden = jnp.tanh(params["w"] @ others["x"])
  return jnp.sum(hidden**2 * others["weights"]) + jnp.sum(params["b"] ** 3)


@jax.custom_vjp
def by_hand(x):
  return jnp.tanh(x)


by_hand.defvjp(
  lambda x: (by_hand(x), by_hand(x)), lambda y, bar: (bar * (1 - y**2),)
)


def without_forward_mode(params, others):
  hidden = by_hand(params["w"] @ others["x"])
  return jnp.sum(hidden**2 * others["weights"]) + jnp.sum(params["b"] ** 3)


@pytest.fixture
def point():
  draw = np.random.default_rng(0).normal
  array = lambda *shape: jnp.asarray(draw(size=shape), jnp.float32)
  params = {"w": array(4, 3), "b": array(2)}
  others = {"x": array(3), "weights": array(4)}
  bars = {"w": array(4, 3), "b": array(2)}, jnp.asarray(0.7, jnp.float32)
  return params, others, bars


def alone(loss):
  """The loss, with nothing beside it."""
  return lambda params, others: (loss(params, others), [])


def beside(params, others):
  """What a loss gives beside its value."""
  return [jnp.sin(params["b"]), others["x"] * jnp.sum(params["w"])]


def close(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "evaluate",
  [
    second_order.forward_over_reverse,
    second_order.reverse_over_reverse,
  ],
)
@pytest.mark.parametrize("with_value", [True, False])
def test_pullback_equals_autodiff(point, evaluate, with_value):
  params, others, (gradient_bar, value_bar) = point

  def dotted(params, others):
    value, gradient = jax.value_and_grad(loss_fn)(params, others)
    total = value_bar * value if with_value else 0.0
    for name, bar in gradient_bar.items():
      total = total + jnp.sum(bar * gradient[name])
    return total

  def ours(params, others):
    bar = value_bar if with_value else None
    return evaluate(alone(loss_fn), params, others, gradient_bar, bar, [])

  bars = jax.jit(ours)(params, others)
  close(bars, jax.grad(dotted, (0, 1))(params, others))
  beside_bar = [jnp.array([0.3, -1.1]), jnp.array([1.0, 0.2, -0.4])]

  def more(params, others):
    pairs = zip(beside(params, others), beside_bar, strict=True)
    return dotted(params, others) + sum(jnp.vdot(a, b) for a, b in pairs)

  both = lambda params, others: (
    loss_fn(params, others),
    beside(params, others),
  )
  bar = value_bar if with_value else None
  bars = evaluate(both, params, others, gradient_bar, bar, beside_bar)
  close(bars, jax.grad(more, (0, 1))(params, others))


def test_auto_prefers_forward_mode(point):
  params, others, _ = point
  chosen = second_order.choose("auto", loss_fn, params, others)
  assert chosen is second_order.forward_over_reverse


def test_auto_knows_a_model_without_forward_mode(point):
  params, others, (gradient_bar, value_bar) = point
  chosen = second_order.choose("auto", without_forward_mode, params, others)
  assert chosen is second_order.reverse_over_reverse
  bars = params, others, gradient_bar, value_bar, []
  got = chosen(alone(without_forward_mode), *bars)
  expected = second_order.forward_over_reverse(alone(loss_fn), *bars)
  close(got, expected)


def rooted(root):
  def loss(params, others):
    z = jnp.exp(params["w"] @ others["x"])
    return jnp.sum(root(z) * others["weights"]) + jnp.sum(params["b"] ** 3)

  return loss


def solved(z):
  slope = lambda g, y: y / g(jnp.ones_like(y))
  return lax.custom_root(lambda y: y * y - z, z, lambda f, y: z**0.5, slope)


def test_auto_goes_through_an_implicit_function(point):
  params, others, bars = point
  chosen = second_order.choose("auto", rooted(solved), params, others)
  inputs = params, others, *bars, []
  got = chosen(alone(rooted(solved)), *inputs)
  plain = alone(rooted(lambda z: z**0.5))
  close(got, second_order.reverse_over_reverse(plain, *inputs))


def straight_through(params, others):
  """Its gradient with respect to w is none of a scalar."""
  rounded = params["w"] + jax.lax.stop_gradient(
    jnp.round(params["w"] * 4) / 4 - params["w"]
  )
  return loss_fn({**params, "w": rounded}, others)


@pytest.mark.parametrize("loss", [straight_through, without_forward_mode])
@pytest.mark.parametrize("within", [lambda f: f, jax.checkpoint, jax.jit])
def test_a_symmetric_hessian_is_not_assumed(point, loss, within):
  params, others, _ = point
  chosen = second_order.choose("auto", within(loss), params, others)
  assert chosen is second_order.reverse_over_reverse
  with pytest.raises(ValueError, match="not symmetric"):
    second_order.choose("forward_over_reverse", within(loss), params, others)


def test_auto_works_on_shapes_and_under_jit(point):
  params, others, _ = point
  shapes = jax.eval_shape(lambda: params)

  def under_jit(others):
    for loss, expected in [
      (loss_fn, second_order.forward_over_reverse),
      (without_forward_mode, second_order.reverse_over_reverse),
    ]:
      assert second_order.choose("auto", loss, shapes, others) is expected
    return others["x"]

  jax.jit(under_jit)(others)


@pytest.mark.parametrize(
  "mode", ["forward_over_reverse", "reverse_over_reverse"]
)
def test_a_mode_is_taken_at_its_word(point, mode):
  params, others, _ = point
  chosen = second_order.choose(mode, loss_fn, params, others)
  assert chosen is getattr(second_order, mode)


@pytest.mark.parametrize(
  "normalise", [jax.nn.softmax, jax.nn.log_softmax, jax.nn.logsumexp]
)
def test_softmax_has_a_symmetric_hessian(point, normalise):
  params, others, _ = point
  loss = lambda params, others: jnp.sum(normalise(params["w"]) ** 2)
  chosen = second_order.choose("auto", loss, params, others)
  assert chosen is second_order.forward_over_reverse


def test_unknown_mode(point):
  params, others, _ = point
  with pytest.raises(ValueError, match="'forward'.*choose one of"):
    second_order.choose("forward", loss_fn, params, others)
