"""Trains a Transformer, and says what a step costs."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from shared import image_data
from shared.runs import check_finite, megabytes
from streams import network

_CHUNK = 500  # images that are classified at once


def train(
  kind: str,
  number: int,
  data: image_data.Data,
  *,
  steps: int,
  batch_size: int,
  width: int,
  rate: float,
  seed: int,
) -> dict[str, Any]:
  """Adam on the cross-entropy; losses, test accuracy, memory and seconds.

  Raises:
    FloatingPointError: a loss was not finite.
  """
  images, labels = jnp.asarray(data.train_images), data.train_labels
  _, height, breadth = images.shape
  classes = int(labels.max()) + 1
  params = network.init(seed, number, (height, breadth), classes, width)
  optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
  key = jax.random.key(seed)
  targets = jnp.asarray(labels)

  def step(params, state, t):
    indices_key, own = jax.random.split(jax.random.fold_in(key, t))
    indices = jax.random.randint(indices_key, (batch_size,), 0, len(labels))

    def loss_fn(params):
      scores = network.logits(kind, params, images[indices], own)
      return optax.softmax_cross_entropy_with_integer_labels(
        scores, targets[indices]
      ).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(params)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(params, updates), state, loss

  state = optimizer.init(params)
  program = jax.jit(step).lower(params, state, np.int32(0)).compile()
  losses, seconds = [], []
  for t in range(steps):
    begin = time.perf_counter()
    params, state, loss = program(params, state, np.int32(t))
    losses.append(float(loss))
    seconds.append(time.perf_counter() - begin)
  check_finite(
    f"a loss of {kind} of {number} layers", losses, "lower --learning_rate."
  )
  decide = jax.jit(lambda x: network.logits(kind, params, x).argmax(-1))
  test = data.test_images
  decided = [decide(test[i : i + _CHUNK]) for i in range(0, len(test), _CHUNK)]
  return {
    "kind": kind,
    "depth": number,
    "losses": losses,
    "accuracy": float(np.mean(np.concatenate(decided) == data.test_labels)),
    "megabytes": megabytes(program),
    "seconds": float(np.median(seconds)),
  }
