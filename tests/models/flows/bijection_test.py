"""Every layer against dense Jacobians, the check kit, the structure method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from revmom.jacobian import check_bijection, log_det
from revmom.models import (
  EVEN_ODD,
  actnorm,
  additive,
  affine,
  chain,
  checkerboard,
  convnet,
  glow_step,
  linear,
  masked_affine,
  mlp,
  multi_scale,
  reversible_stack,
  scaling,
  sigmoid_log_scale,
  squeeze,
  stack,
  swapped,
)

MLP, CONVNET = mlp((5,), jnp.tanh), convnet(3, kernels=(3, 1))
PAIR = chain(affine(MLP), affine(MLP, swapped(EVEN_ODD)))
STEP = glow_step(CONVNET)
IMAGE = (2, 1, 3)

LAYERS = {  # a bijection, and an event's shape
  "additive": (additive(MLP), (5,)),
  "additive, even and odd": (additive(MLP, EVEN_ODD), (5,)),
  "affine": (affine(MLP), (5,)),
  "affine of two": (affine(MLP), (2,)),
  "affine, swapped": (affine(MLP, swapped(EVEN_ODD)), (5,)),
  "affine, sigmoid": (affine(MLP, log_scale=sigmoid_log_scale), (4,)),
  "affine, images": (affine(CONVNET), IMAGE),
  "masked affine": (masked_affine(CONVNET, checkerboard), (3, 2, 1)),
  "actnorm": (actnorm(), (3,)),
  "actnorm, images": (actnorm(event_ndim=3), IMAGE),
  "linear": (linear(), (4,)),
  "linear, images": (linear(event_ndim=3), IMAGE),
  "scaling": (scaling(), (3,)),
  "squeeze": (squeeze(), (2, 4, 1)),
  "three couplings": (chain(PAIR, affine(MLP)), (5,)),
  "stack": (stack(PAIR, 3), (5,)),
  "reversible stack": (reversible_stack(PAIR, 3), (5,)),
  "Glow step": (STEP, IMAGE),
  "multi-scale": (multi_scale(STEP, chain(squeeze(), STEP)), (2, 2, 3)),
}
VOLUME_PRESERVING = {"additive", "additive, even and odd", "squeeze"}
PERMUTING = {"squeeze", "multi-scale"}
LONG = {"affine, images", "masked affine", "multi-scale", "stack"}
QUICK = {"affine", "actnorm, images"}


def perturbed(params, seed, scale=0.3):
  """Parameters far from their start, where many are zero."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda p: np.asarray(p + scale * rng.normal(size=p.shape), p.dtype),
    jax.device_get(params),
  )


def with_params(name, dtype=jnp.float64):
  """The functions of x alone, and a sampler of x."""
  layer, shape = LAYERS[name]
  x = np.random.default_rng(0).normal(size=(4, *shape)).astype(dtype)
  params = jax.jit(layer.init)(jax.random.key(1), x)
  params = jax.tree.map(jnp.asarray, perturbed(params, 2))
  forward = lambda x: layer.forward_and_log_det(params, x)
  inverse = lambda y: layer.inverse_and_log_det(params, y)
  return forward, inverse, lambda key: jax.random.normal(key, shape, dtype)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow) if name in LONG else name
    for name in LAYERS
  ],
)
def test_log_det_is_that_of_the_dense_jacobian(name, x64):
  forward, inverse, sampler = with_params(name)
  x = sampler(jax.random.key(3))

  def flat_forward(x):
    y, value = forward(x)
    image, to_tree = ravel_pytree(y)
    x, back_value = inverse(y)
    other = to_tree(image + 0.5)
    again, _ = forward(inverse(other)[0])
    again = ravel_pytree(again)[0] - 0.5
    return image, (value, back_value, x, again, image)

  differentiate = jax.jacrev if name == "reversible stack" else jax.jacfwd
  jacobian, (value, back_value, back, again, image) = jax.jit(
    differentiate(flat_forward, has_aux=True)
  )(x)
  dense = np.linalg.slogdet(np.asarray(jacobian).reshape(x.size, x.size))
  near = dict(rtol=0, atol=1e-9)
  np.testing.assert_allclose(value, dense.logabsdet, **near)
  np.testing.assert_allclose(back_value, -dense.logabsdet, **near)
  np.testing.assert_allclose(back, x, **near)
  np.testing.assert_allclose(again, image, **near)
  assert (name in VOLUME_PRESERVING) == (abs(dense.logabsdet) < 1e-9)
  assert dense.sign == 1 or name in PERMUTING


@pytest.mark.sampled(9, rest="exhaustive")
@pytest.mark.parametrize(
  "name",
  [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in LAYERS
  ],
)
def test_conforms(name):
  # The kit casts the samples; parameters are widened with them.
  forward, inverse, sampler = with_params(name, jnp.float32)
  check_bijection(
    lambda x: forward(x)[0],
    lambda y: inverse(y)[0],
    lambda x: forward(x)[1],
    sampler,
    inverse_log_det=lambda y: inverse(y)[1],
    volume_preserving=name in VOLUME_PRESERVING,
    num_points=8,
  )


@pytest.mark.parametrize(
  "name",
  [
    pytest.param("three couplings", marks=pytest.mark.slow),
    "Glow step",
    pytest.param("squeeze", marks=pytest.mark.slow),
  ],
)
def test_log_det_is_that_of_the_structure_method(name, x64):
  forward, _, sampler = with_params(name)
  x = sampler(jax.random.key(4))
  structured = log_det(lambda x: forward(x)[0], method="structure")
  found, value = jax.jit(lambda x: (structured(x), forward(x)[1]))(x)
  np.testing.assert_allclose(found.value, value, rtol=0, atol=1e-9)
  assert max(block.largest for block in found.report) <= 3


@pytest.mark.slow
def test_types(x64):
  """Layers compute in the wider type of x and params; log-dets in float32."""
  layer = stack(affine(MLP), 2)
  x = jax.random.normal(jax.random.key(0), (3, 4))
  x32, x16 = x.astype(jnp.float32), x.astype(jnp.bfloat16)
  for wide, narrow in ((x32, x16), (x, x32)):
    params = perturbed(layer.init(jax.random.key(1), narrow), 2)
    y, value = layer.forward_and_log_det(params, narrow)
    assert (y.dtype, value.dtype) == (narrow.dtype, jnp.float32)
    y, value = layer.forward_and_log_det(params, wide)
    assert y.dtype == value.dtype == wide.dtype
  rounded = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
  _, coarse = layer.forward_and_log_det(rounded, x16)
  np.testing.assert_allclose(coarse, value, rtol=0, atol=0.1)


@pytest.mark.slow
def test_batch_axes_are_mapped():
  layer, (height, width, channels) = LAYERS["Glow step"]
  x = jax.random.normal(jax.random.key(0), (2, 3, height, width, channels))
  params = perturbed(layer.init(jax.random.key(1), x), 2)
  y, value = layer.forward_and_log_det(params, x)
  one = lambda x: layer.forward_and_log_det(params, x)
  each, each_value = jax.vmap(jax.vmap(one))(x)
  np.testing.assert_allclose(y, each, rtol=0, atol=1e-5)
  np.testing.assert_allclose(value, each_value, rtol=0, atol=1e-5)
  assert value.shape == (2, 3)


@pytest.mark.slow
def test_a_stack_is_its_layers_in_turn():
  layer = affine(mlp((3,)))
  layers = stack(layer, 3)
  x = jax.random.normal(jax.random.key(0), (2, 4))
  params = perturbed(layers.init(jax.random.key(1), x), 2)
  y, value = layers.forward_and_log_det(params, x)
  total, structure = 0.0, jax.tree.structure(params)
  for leaves in zip(*jax.tree.leaves(params), strict=True):
    x, more = layer.forward(jax.tree.unflatten(structure, leaves), x)
    total += more
  np.testing.assert_allclose(y, x, rtol=1e-6)
  np.testing.assert_allclose(value, total, rtol=1e-6)


def test_errors_say_what_to_do():
  key = jax.random.key(0)
  with pytest.raises(ValueError, match="last axis of 2 or more"):
    affine(MLP).init(key, jnp.zeros((3, 1)))
  with pytest.raises(ValueError, match="no layers"):
    chain()
  with pytest.raises(ValueError, match="depth=0"):
    stack(affine(MLP), 0)
  layer, x = actnorm(event_ndim=3), jnp.ones((2, 3))
  with pytest.raises(ValueError, match=r"\[H, W, C\] if 3"):
    layer.forward_and_log_det(layer.init(key, x), x)
  with pytest.raises(ValueError, match="dequantise"):
    squeeze().forward_and_log_det((), jnp.zeros((2, 2, 1), jnp.int32))
