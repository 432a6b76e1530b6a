"""The trainings of depth_sweep.py, each under a name."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from depth import gain_map, networks
from shared import image_data
from shared.settings import flag

SIGMA_B = 0.05**0.5  # as in the paper's figure


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  dataset: str = flag(
    "digits", "Images; all but digits in --data_dir.", choices=image_data.NAMES
  )
  data_dir: str | None = flag(None, "Folder of idx files.", may_change=True)
  depths: tuple[int, ...] = flag(
    (2, 10, 50, 200), "Layers of the networks.", at_least=1
  )
  channels: int = flag(8, "Of the convolutional networks.", at_least=1)
  steps: int = flag(60, "Adam steps of each network.", at_least=1)
  batch_size: int = flag(
    32, "Images a step, drawn with replacement.", at_least=1
  )
  learning_rate: float = flag(2e-3, "Of Adam.", at_least=0.0)
  map_depths: tuple[int, ...] = flag(
    (5, 10, 20, 30, 40, 60, 80, 110, 150, 200),
    "Hidden layers of the fully connected networks.",
    at_least=1,
  )
  map_gains: tuple[float, ...] = flag(
    tuple(0.5 + 0.25 * i for i in range(13)),
    "sigma_w^2 of the fully connected networks.",
    at_least=1e-3,
  )
  map_width: int = flag(48, "Units of a layer of these.", at_least=1)
  map_steps: int = flag(200, "Steps of SGD with momentum of these.", at_least=1)
  map_learning_rate: float = flag(1e-3, "Of these.", at_least=0.0)
  seed: int = flag(0, "Of initial weights and batches.")

  def in_order(self) -> "Config":
    """The same, with each depth and gain once, from the smallest."""
    once = lambda numbers: tuple(sorted(set(numbers)))
    return dataclasses.replace(
      self,
      depths=once(self.depths),
      map_depths=once(self.map_depths),
      map_gains=once(self.map_gains),
    )


def draws(config: Config, steps: int, count: int) -> jax.Array:
  """Indices of images [steps, batch_size]."""
  key = jax.random.fold_in(jax.random.key(config.seed), 1)
  return jax.random.randint(key, (steps, config.batch_size), 0, count)


def network_runs(
  config: Config, data: image_data.Data
) -> Iterator[tuple[str, Callable[[], Any]]]:
  """What is to be done about each kind of convolutional network."""
  depths = config.depths
  train = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)
  validation = (
    jnp.asarray(data.validation_images),
    jnp.asarray(data.validation_labels),
  )
  batches = draws(config, config.steps, len(data.train_labels))
  key = jax.random.key(config.seed)
  start = functools.partial(
    networks.init,
    key,
    images=train[0][batches[0]],
    channels=config.channels,
    largest=depths[-1],
  )

  def trained(name: str) -> list[dict[str, Any]]:
    network = networks.NETWORKS[name]
    program = jax.jit(
      lambda params, depth: networks.outcome(
        network,
        params,
        train,
        validation,
        depth,
        batches,
        optax.adam(config.learning_rate),
      )
    )
    rows = []
    for depth in depths:
      params = start(network=network, depth=depth)
      result = program(params, jnp.asarray(depth))
      rows.append(
        {
          "depth": depth,
          "gradients": np.asarray(result.gradients[:depth]).tolist(),
          "losses": np.asarray(result.losses).tolist(),
          "accuracy": float(result.accuracy),
        }
      )
      _check_finite(name, rows[-1])
    return rows

  def identity_path(name: str) -> list[float]:
    network = networks.IDENTITY_PATHS[name]
    params = start(network=network, depth=depths[-1])
    first = batches[0]
    program = jax.jit(
      lambda params: networks.gradients(
        network, params, train[0][first], train[1][first], depths[-1]
      )
    )
    return np.asarray(program(params)).tolist()

  for name in networks.NETWORKS:
    yield name, functools.partial(trained, name)
  for name in networks.IDENTITY_PATHS:
    yield f"identity path, {name}", functools.partial(identity_path, name)


def map_runs(
  config: Config, data: image_data.Data
) -> Iterator[tuple[str, Callable[[], Any]]]:
  """What is to be done about each depth of the map."""
  depths = config.map_depths
  gains = np.sqrt(config.map_gains)
  pixels = data.train_images.reshape(len(data.train_images), -1)
  centred = pixels - pixels.mean(0)
  images = jnp.asarray(centred / np.sqrt(np.mean(centred**2)))
  labels = jnp.asarray(data.train_labels)
  program = jax.jit(
    jax.vmap(
      functools.partial(
        gain_map.train,
        jax.random.key(config.seed),
        images,
        labels,
        sigma_b=SIGMA_B,
        width=config.map_width,
        largest=depths[-1],
        batches=draws(config, config.map_steps, len(labels)),
        optimizer=optax.sgd(config.map_learning_rate, 0.9),
      ),
      in_axes=(None, 0),
    )
  )

  def row(depth: int) -> dict[str, Any]:
    trained = program(jnp.asarray(depth), jnp.asarray(gains, jnp.float32))
    return {
      "depth": depth,
      "accuracy": np.asarray(trained.accuracy).tolist(),
      "loss": np.asarray(trained.loss, np.float64).tolist(),
    }

  for depth in depths:
    yield f"map of depth {depth}", functools.partial(row, depth)


def _check_finite(name: str, row: dict[str, Any]) -> None:
  bad = [i for i, loss in enumerate(row["losses"]) if not math.isfinite(loss)]
  if bad or not all(map(math.isfinite, row["gradients"])):
    raise FloatingPointError(
      f"{name} of {row['depth']} layers: "
      + (f"the loss of step {bad[0]}" if bad else "a gradient at first")
      + " is not finite; lower --learning_rate."
    )
