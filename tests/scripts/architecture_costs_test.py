"""Runs scripts/architecture_costs.py as a user would."""

import csv
import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "architecture_costs.py"


def run(env, *flags):
  return subprocess.run(
    [sys.executable, str(SCRIPT), *flags],
    env=env,
    capture_output=True,
    text=True,
    timeout=280,
  )


def test_a_list_of_layers(user_env, tmp_path):
  flags = "--convnet=Conv3-64 / maxpool / FC-1024", f"--workdir={tmp_path}"
  done = run(user_env, *flags)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == "parameters: 822,086,400"
  result = json.loads((tmp_path / "result.json").read_text())
  assert result["parameters"] == 3 * 9 * 64 + 64 + 112 * 112 * 64 * 1024 + 1024
  assert [layer["shape"] for layer in result["layers"]] == [
    [224, 224, 64],
    [112, 112, 64],
    [1024],
  ]


@pytest.mark.slow
def test_exponents_rounds_and_resuming(user_env, tmp_path):
  networks = "wavenet", "pixelcnn", "mdrnn"
  flags = [f"--network={name}" for name in networks]
  flags += [f"--workdir={tmp_path}", "--features=64"]
  done = run(user_env, *flags)
  assert done.returncode == 0, done.stderr
  for line in ("VGG-16: 138,357,544 parameters", "H + W + d - 2"):
    assert line in done.stdout
  result = json.loads((tmp_path / "result.json").read_text())
  assert result["largest_exponent_error"] < 0.05
  steps = {
    row["network"]: row["round_steps"]["dataflow_rounds"]
    for row in result["growth"]
  }
  assert steps["pixelcnn"] == {"H": 0, "W": 0, "d": 1, "k": 0}
  assert steps["mdrnn"] == {"H": 1, "W": 1, "d": 1, "k": 0}
  rows = {row["network"]: row for row in result["networks"]}
  assert rows["mdrnn"]["dataflow_rounds"] == 8 + 8 + 8 - 2
  assert rows["wavenet"]["context"] == (1 + 2 + 4 + 8 + 16 + 1 + 2 + 4) + 2
  lines = (tmp_path / "counts.csv").read_text().splitlines()
  table = list(csv.DictReader(lines))
  assert {row["network"] for row in table} == set(networks)
  png = tmp_path / "architecture_costs.png"
  assert png.read_bytes().startswith(b"\x89PNG")
  # Again, with a count that only the file can have.
  counts = json.loads((tmp_path / "counts.json").read_text())
  key = "mdrnn H=8 W=8 d=8 k=64"
  counts["rows"][key]["parameters"] = 123_456_789
  (tmp_path / "counts.json").write_text(json.dumps(counts))
  again = run(user_env, *flags)
  assert "123,456,789" in again.stdout


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--convnet=Conv3-64,max", "Layer 2, 'max': write ConvK-N"),
    ("--network=pixelrnn", "should be one of"),
    ("--networks=lstm", "Did you mean: network"),
    ("--depth=0", "depth"),
  ],
)
def test_a_wrong_flag_is_named(user_env, flag, message):
  done = run(user_env, flag)
  assert done.returncode != 0
  assert message in done.stdout + done.stderr
