"""Lists of layers against published counts and a network of arrays."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from revmom.analysis import cost
from revmom.analysis.closed_forms import convnet_notation as notation


@pytest.mark.parametrize(
  ("text", "parameters"),
  [
    (notation.VGG11, 132_863_336),
    (notation.VGG16, 138_357_544),
    (notation.VGG19, 143_667_240),
  ],
)
def test_published_numbers_of_parameters(text, parameters):
  layers = notation.layers(text)
  assert sum(layer.parameters for layer in layers) == parameters
  assert layers[-4].shape == (7, 7, 512)
  assert layers[-1].shape == (1000,)


def network(layers, window):
  """The same network in lax, of the parameters' shapes."""

  def run(params, x):
    for layer, own in zip(layers, params, strict=True):
      if layer.token == "maxpool":
        x = lax.reduce_window(
          x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        )
        continue
      weights, bias = own
      if weights.ndim == 4:
        x = lax.conv_general_dilated(
          x,
          weights,
          (1, 1),
          [(1, 1), (1, 1)],
          dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
      else:
        x = x.reshape(len(x), -1) @ weights
      x = jnp.maximum(x + bias, 0.0)
    return x

  def shapes(channels):
    for layer in layers:
      *_, outputs = layer.shape
      if layer.token == "maxpool":
        yield None
      else:
        kind = layer.token.lower().partition("-")[0]
        inputs = (
          (layer.weights // outputs,)
          if kind == "fc"
          else (int(kind[4:]), int(kind[4:]), channels)
        )
        yield (
          jax.ShapeDtypeStruct((*inputs, outputs), jnp.float32),
          jax.ShapeDtypeStruct((outputs,), jnp.float32),
        )
      channels = outputs

  return run, list(shapes(3))


@pytest.mark.parametrize(
  ("text", "size"),
  [
    ("Conv3-5, maxpool, Conv5-7 / Conv1-4\nmaxpool / fc-11 / FC-6", (19, 22)),
    (notation.VGG16, (224, 224)),
  ],
)
def test_a_real_network_has_these_counts(text, size):
  layers = notation.layers(text, (*size, 3))
  run, params = network(layers, size)
  x = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  assert jax.eval_shape(run, params, x).shape == (1, *layers[-1].shape)
  found = cost(run, params, x, backward=False)
  assert found.parameters == sum(layer.parameters for layer in layers)
  multiply_adds = sum(layer.multiply_adds for layer in layers)
  assert found.forward.multiply_adds == multiply_adds
  assert found.connections == multiply_adds
  assert found.forward.dataflow_rounds == sum(
    layer.weights > 0 for layer in layers
  )


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("Conv3-64 / Conf3-64", "Layer 2, 'Conf3-64': write ConvK-N"),
    ("Conv3", "Layer 1, 'Conv3'"),
    ("Conv0-64", "'Conv0-64'"),
    ("FC-10, , FC-3", "Layer 2, ''"),
    ("", "Layer 1, ''"),
    ("FC-1024 / maxpool", "Layer 2, 'maxpool': it comes after FC"),
    ("FC-1024 / Conv3-64", "Layer 2, 'Conv3-64': it comes after FC"),
    ("maxpool, maxpool, maxpool", "Layer 3, 'maxpool'.*1 x 1"),
    ("maxpool, Conv9-64", "'Conv9-64'.*2 x 2 with padding 1"),
  ],
)
def test_wrong_notation_names_the_token(text, message):
  with pytest.raises(ValueError, match=message):
    notation.layers(text, (4, 5, 3))


def test_padding():
  (layer,) = notation.layers("Conv3-2", (8, 9, 3), padding=0)
  assert layer.shape == (6, 7, 2)
  assert layer.multiply_adds == 6 * 7 * 9 * 3 * 2
