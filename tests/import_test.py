"""What `import revmom` loads, and what is loaded when it is first used."""

import subprocess
import sys
import textwrap

import pytest

import revmom
from revmom import training

SLOW = ("flax", "matplotlib", "scipy", "sklearn", "jax.extend")
ROOMS = ("analysis", "cells", "depth", "jacobian", "models")


def test_importing_loads_nothing_slow():
  program = f"""
    import sys, revmom
    loaded = [name for name in {SLOW} if name in sys.modules]
    assert not loaded, loaded
    loaded = [n for n in {ROOMS} if "revmom." + n in sys.modules]
    assert not loaded, loaded
    assert set(revmom.__all__) <= set(dir(revmom))
    for name in revmom.__all__:
      getattr(revmom, name)
    assert revmom.cells is sys.modules["revmom.cells"]
    assert revmom.cells.nnx.LSTM and revmom.models.nnx.UGCNN
    assert revmom.log_det is revmom.jacobian.log_det
    assert revmom.ledger is revmom.training.ledger
  """
  run = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(program)],
    capture_output=True,
    text=True,
  )
  assert not run.returncode, run.stderr


@pytest.mark.parametrize("module", [revmom, training])
def test_what_is_not_public_is_missing(module):
  with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
    module.nonsense  # noqa: B018
