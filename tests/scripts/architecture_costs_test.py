"""Runs scripts/architecture_costs.py as a user would."""

import csv
import json

import pytest


@pytest.mark.slow
def test_a_list_of_layers(script, tmp_path):
  script = script.at(tmp_path)
  done = script.run("--convnet=Conv3-64 / maxpool / FC-1024")
  assert done.stdout.splitlines()[-1] == "parameters: 822,086,400"
  result = script.result()
  assert result["parameters"] == 3 * 9 * 64 + 64 + 112 * 112 * 64 * 1024 + 1024
  assert [layer["shape"] for layer in result["layers"]] == [
    [224, 224, 64],
    [112, 112, 64],
    [1024],
  ]


@pytest.mark.slow
def test_exponents_rounds_and_resuming(script, tmp_path):
  networks = "wavenet", "pixelcnn", "mdrnn"
  flags = *(f"--network={name}" for name in networks), "--features=64"
  script = script.at(tmp_path)
  done = script.run(*flags)
  for line in ("VGG-16: 138,357,544 parameters", "H + W + d - 2"):
    assert line in done.stdout
  result = script.result()
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
  assert "architecture_costs" in script.figures()
  # Again, with a count that only the file can have.
  counts = json.loads((tmp_path / "counts.json").read_text())
  key = "mdrnn H=8 W=8 d=8 k=64"
  counts["rows"][key]["parameters"] = 123_456_789
  (tmp_path / "counts.json").write_text(json.dumps(counts))
  assert "123,456,789" in script.run(*flags).stdout


@pytest.mark.slow
def test_what_is_not_compared_is_named(script):
  sizes = "--height=3", "--width=3", "--depth=1", "--features=4"
  done = script.run("--network=mdrnn_wavefront", *sizes)
  assert "without H and W of mdrnn_wavefront" in done.stdout


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
def test_a_wrong_flag_is_named(script, flag, message):
  assert message in script.fails(flag)
