"""Hypergradients of random ordinary networks are numbers, and right."""

import importlib.util
import pathlib
import sys

import jax
import pytest

_PATH = pathlib.Path(__file__).parents[2] / "benchmarks/reversal_rate.py"
_SPEC = importlib.util.spec_from_file_location("reversal_rate", _PATH)
reversal_rate = importlib.util.module_from_spec(_SPEC)
sys.modules["reversal_rate"] = reversal_rate
_SPEC.loader.exec_module(reversal_rate)

# A case drawn at random, with what made it fail before gradients were isolated.
TINY = reversal_rate.draw(0)._replace(
  kind="dense",
  normalisation="none",
  activation="gelu",
  dtype="float32",
  batch=6,
  widths=(2, 3),
  steps=3,
  optimizer="adam",
  clipped=False,
  mode="auto",
  jitted=True,
)


def check(case):
  with jax.numpy_dtype_promotion("standard"):
    result = reversal_rate.run_and_check(case)
  assert result["finite"]
  assert result["right"], result


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"steps": 1},
    {"optimizer": "sgd", "clipped": True, "activation": "tanh"},
    {"optimizer": "adamw", "normalisation": "batch", "steps": 20},
    {"optimizer": "muon", "clipped": True, "widths": (10, 6, 3)},
    {"kind": "convolution", "normalisation": "batch", "dtype": "float64"},
    {"kind": "attention", "steps": 1},
  ],
  ids=range(7),
)
def test_what_failed_once(changes):
  check(TINY._replace(**changes))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1060))
def test_random_networks(seed):
  check(reversal_rate.draw(seed))
