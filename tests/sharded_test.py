"""Tests marked `sharded`, in a process with eight virtual devices."""

import pathlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
  "marks",
  [
    "not slow",
    pytest.param("slow and not exhaustive", marks=pytest.mark.slow),
    pytest.param(
      "exhaustive", marks=[pytest.mark.slow, pytest.mark.exhaustive]
    ),
  ],
)
def test_on_eight_devices(marks, eight_devices):
  tests = pathlib.Path(__file__).parent.rglob("*_test.py")
  files = [str(path) for path in tests if "mark.sharded" in path.read_text()]
  options = ["-q", "-m", f"sharded and {marks}"]
  run = subprocess.run(
    [sys.executable, "-m", "pytest", *options, *files],
    env=eight_devices,
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stdout + run.stderr
