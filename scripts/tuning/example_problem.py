"""What `scripts/tune.py` tunes by default; copy it to pose your own problem.

A tanh network reads the digits that come with scikit-learn, and starts from a
learning rate that is much too small for 100 steps.  Data that a loss needs
besides its batch can be module-level arrays, as here.
"""

import jax
import jax.numpy as jnp
import optax

import revmom
from shared import image_data

_SIZES = 64, 50, 10
_BATCH_SIZE = 100

_DATA = image_data.load("digits")
_TRAIN = _DATA.train_images.reshape(-1, 64), _DATA.train_labels
_VALIDATION = _DATA.validation_images.reshape(-1, 64), _DATA.validation_labels
_TEST = _DATA.test_images.reshape(-1, 64), _DATA.test_labels


def init(key):
  """Initial parameters: any pytree of floating-point arrays."""
  layers = []
  for fan_in, fan_out in zip(_SIZES[:-1], _SIZES[1:], strict=True):
    key, layer_key = jax.random.split(key)
    weights = jax.random.normal(layer_key, (fan_in, fan_out)) / fan_in**0.5
    layers.append({"weights": weights, "biases": jnp.zeros(fan_out)})
  return layers


def batches(key, step):
  """The batch of a step (int32 []): all its randomness comes from the key."""
  images, labels = map(jnp.asarray, _TRAIN)
  key = jax.random.fold_in(key, step)
  indices = jax.random.randint(key, (_BATCH_SIZE,), 0, len(labels))
  return images[indices], labels[indices]


def loss_fn(params, batch):
  """The training loss of a batch: a scalar."""
  x, labels = batch
  for layer in params[:-1]:
    x = jnp.tanh(x @ layer["weights"] + layer["biases"])
  scores = x @ params[-1]["weights"] + params[-1]["biases"]
  losses = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
  return losses.mean()


def validation_loss(params):
  """What tuning lowers, after training.

  Instead of this function a problem can have a `validation_batch`, whose
  `loss_fn` then is the validation loss.
  """
  return loss_fn(params, _VALIDATION)


def test_loss(params):
  """Optional: only reported, before and after."""
  return loss_fn(params, _TEST)


def optimizer():
  """Optional: where tuning starts; revmom.sgd(0.01, 0.9) if left out."""
  return revmom.sgd(learning_rate=0.01, momentum=0.9)
