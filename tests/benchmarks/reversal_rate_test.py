"""Hypergradients of random ordinary networks are numbers, and right."""

import importlib.util
import pathlib
import sys

import jax
import pytest

if "reversal_rate" not in sys.modules:  # it defines flags
  _PATH = pathlib.Path(__file__).parents[2] / "benchmarks/reversal_rate.py"
  _SPEC = importlib.util.spec_from_file_location("reversal_rate", _PATH)
  sys.modules["reversal_rate"] = importlib.util.module_from_spec(_SPEC)
  _SPEC.loader.exec_module(sys.modules["reversal_rate"])
reversal_rate = sys.modules["reversal_rate"]

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
    pytest.param({"steps": 1}, marks=pytest.mark.slow),
    {"optimizer": "sgd", "clipped": True, "activation": "tanh"},
    {"optimizer": "adamw", "normalisation": "batch", "steps": 20},
    pytest.param(
      {"optimizer": "muon", "clipped": True, "widths": (10, 6, 3)},
      marks=pytest.mark.slow,
    ),
    pytest.param(
      {"kind": "convolution", "normalisation": "batch", "dtype": "float64"},
      marks=pytest.mark.slow,
    ),
    pytest.param({"kind": "attention", "steps": 1}, marks=pytest.mark.slow),
  ],
  ids=range(7),
)
def test_what_failed_once(changes):
  check(TINY._replace(**changes))


@pytest.mark.parametrize("seed", range(1000, 1012))
def test_five_small_networks_of_a_random_kind(seed):
  """As drawn, but for their sizes; one program serves five draws of numbers."""
  case = reversal_rate.draw(seed)
  case = case._replace(
    batch=min(case.batch, 7),
    widths=tuple(min(width, 5) for width in case.widths[-2:]),
    steps=min(case.steps, 7),
    jitted=True,
  )
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.enable_x64(case.dtype == "float64"),
  ):
    optimizer = reversal_rate.optimizer_of(case)
    loss, _, _ = reversal_rate.problem(case)
    hypergradient = reversal_rate.hypergradient(case, loss)
    for draw in range(5):
      case = case._replace(seed=5 * seed + draw)
      _, params, batches = reversal_rate.problem(case)
      bars = hypergradient(optimizer, params, batches)
      assert reversal_rate.is_finite(bars), case


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1060))
def test_random_networks(seed):
  check(reversal_rate.draw(seed))
