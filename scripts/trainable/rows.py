"""The measurements of scripts/trainability.py, one function a system.

Each returns rows, predictions or bounds beside measurements, and the curves of
its panel.
"""

from collections.abc import Callable

import jax
import numpy as np

from trainable import layers, recurrence, residual
from trainable.row import Result


def measurements(
  key: jax.Array, images: np.ndarray, labels: np.ndarray, steps: int
) -> dict[str, Callable[[], Result]]:
  """System -> what measures it."""
  keys = jax.random.split(key, 8)
  return {
    "D1": lambda: recurrence.chain_of_units("sigmoid", (0.0, 3.0, 6.0, 9.0)),
    "D2": lambda: recurrence.chain_of_units("tanh", (0.0, 0.3, 1.0, 3.0)),
    "D3": lambda: recurrence.recurrence(keys[0], 1.3),
    "D4": lambda: residual.residual_map(keys[1]),
    "D5": lambda: layers.normalisation(images),
    "D6": lambda: residual.placements(keys[2], images),
    "D7": lambda: layers.unit_variance(keys[3]),
    "D8": lambda: layers.supervision(keys[4], images, labels),
    "D9": lambda: residual.residual_variances(keys[5], images),
    "D10": lambda: layers.convolutional(keys[6], images, labels, steps),
    "B2": lambda: recurrence.memory_cells(keys[7]),
  }
