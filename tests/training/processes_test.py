"""Runs that several processes share."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).with_name("process_program.py")


def free_port():
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


def start(rank, processes, port, *what, devices=1):
  flags = f"--xla_force_host_platform_device_count={devices}"
  return subprocess.Popen(
    [sys.executable, PROGRAM, *map(str, (rank, processes, port)), *what],
    env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def results(programs):
  found = []
  for program in programs:
    out, error = program.communicate(timeout=600)
    assert program.returncode == 0, error
    found.append(json.loads(out.splitlines()[-1]))
  return found


def several(processes, *what):
  port = free_port()
  return results(
    [start(rank, processes, port, *what) for rank in range(processes)]
  )


CASES = [
  ("adamw", "sharded", "whole_runs"),
  ("adamw", "sharded", "eager_whole_runs"),
  ("adamw", "sharded", "single_steps"),
  ("adamw", "sharded", "eager_single_steps"),
  ("adamw", "replicated", "whole_runs"),
  ("sgd", "replicated", "eager_whole_runs"),
  ("sgd", "sharded", "single_steps"),
  ("muon", "sharded", "whole_runs"),
  ("muon", "replicated", "single_steps"),
]


@pytest.mark.parametrize(
  "processes, what",
  [
    pytest.param(
      processes,
      what,
      id=f"{processes}-{'-'.join(what)}",
      marks=[pytest.mark.slow] if (processes, i) != (2, 1) else [],
    )
    for processes in (2, 4)
    for i, what in enumerate(CASES)
  ],
)
def test_integers_are_those_of_one_process(processes, what):
  (alone,) = results([start(0, processes, 0, *what, devices=processes)])
  assert alone.get("receipt", True)
  for found in several(processes, *what):
    numbers, expected = found.pop("numbers"), alone["numbers"]
    assert found == {k: v for k, v in alone.items() if k != "numbers"}
    assert numbers == pytest.approx(expected, rel=1e-6)


def test_copies_that_differ_are_noticed_by_all():
  for found in several(2, "sgd", "replicated", "copies"):
    assert "['bias'] is replicated, but processes hold other" in found["error"]
