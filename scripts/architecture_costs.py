"""What architectures cost, counted from their programs, beside the textbook.

  python scripts/architecture_costs.py                       # all, and VGG-16
  python scripts/architecture_costs.py --network=pixelcnn --network=mdrnn
  python scripts/architecture_costs.py --convnet="Conv3-64 / maxpool / FC-1024"

For each network: parameters, connections (uses of weights, without masked and
padded ones), multiply-adds, bytes that a gradient keeps, context window, and
sequential rounds, as the program is scheduled and as its data dependences
allow.  Then each size is doubled, twice, and the exponents are fitted.

Two minutes on 2 cores; expect every exponent of connections within 0.05 of the
textbook's: O(t d k^2) for WaveNet, O(H W d k^2) for PixelCNN and MDRNN.  A
wavefront also computes cells beyond the grid, whose products are counted as
connections, 1.4 times as many on 8 x 8, and whose growth with H and W is not
compared.  PixelCNN has k^2, too, not the k^3 that circulates: a filter sees the
k features of 4 or 5 places, and there are k filters.

Expect rounds, as data dependences allow, of O(d) for convolutions, O(t + d) for
recurrent networks, and H + W + d - 2 = 22 for an MDRNN of 8 layers on 8 x 8,
whether it is scheduled by rows or as a wavefront.  As scheduled, every layer of
a wavefront has H + W rounds: one for each of its H + W - 1 diagonals and one
before them, the product with the inputs of all cells; and the head has one.

--convnet prints output shapes and parameters of a list of ConvK-N, maxpool and
FC-N on 224 x 224 x 3, padded by 1, with biases, and nothing else.  Expect
822,086,400 parameters of the list above, and 138,357,544 for VGG-16, as
published.

With --workdir it writes result.json, counts.csv, counts.json, from which it
resumes, and architecture_costs.png: connections and rounds against size.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from architecture.networks import NETWORKS, Network
from architecture.plots import figure
from revmom.analysis import convnet_notation, cost, scaling
from shared import output
from shared.progress_bar import progress
from shared.settings import flag, launch
from shared.user_files import blamed

_PUBLISHED = {
  "VGG-11": (convnet_notation.VGG11, 132_863_336),
  "VGG-16": (convnet_notation.VGG16, 138_357_544),
  "VGG-19": (convnet_notation.VGG19, 143_667_240),
}


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  network: tuple[str, ...] = flag(
    ("all",),
    "Which to count; repeat the flag for several.",
    choices=["all", *NETWORKS],
    repeated=True,
  )
  length: int = flag(64, "t, steps of a sequence.", at_least=1)
  height: int = flag(8, "H, of an image.", at_least=1)
  width: int = flag(8, "W, of an image.", at_least=1)
  depth: int = flag(8, "d, layers.", at_least=1)
  features: int = flag(
    32, "k, features of a layer; a multiple of 4.", at_least=4
  )
  convnet: str | None = flag(
    None, "A list of ConvK-N, maxpool and FC-N, to count it alone."
  )


Row = dict[str, Any]


def base_sizes(config: Config, network: Network) -> dict[str, int]:
  """The sizes of a network by their names."""
  every = {"t": config.length, "H": config.height, "W": config.width}
  own = {name: every[name] for name in network.data}
  return {**own, "d": config.depth, "k": config.features}


def points(base: Mapping[str, int], data: Sequence[str]) -> list[dict]:
  """The sizes to count at: all that follows, but once."""
  doubled = [{**base, name: n * base[name]} for name in base for n in (2, 4)]
  return [dict(base), *doubled, *larger(base, data)]


def larger(base: Mapping[str, int], data: Sequence[str]) -> list[dict]:
  """Four and sixteen times as much data, for all networks alike."""
  factors = (4, 16) if len(data) == 1 else (2, 4)
  return [{**base, **{name: n * base[name] for name in data}} for n in factors]


class Counts:
  """What has been counted, in a file if there is one."""

  def __init__(self, path: pathlib.Path | None):
    self.path, self.rows = path, {}
    if path is not None and path.exists():
      with blamed(str(path)):
        saved = json.loads(path.read_text())
        if saved["jax"] == jax.__version__:
          self.rows = saved["rows"]

  def get(self, name: str, sizes: Mapping[str, int], context: bool) -> Row:
    """The row of a network of some sizes."""
    key = " ".join([name, *(f"{k}={v}" for k, v in sizes.items())])
    if key not in self.rows:
      self.rows[key] = measure(name, sizes, context)
      if self.path is not None:
        output.write_json(
          self.path, {"jax": jax.__version__, "rows": self.rows}
        )
    return self.rows[key]


def measure(name: str, sizes: Mapping[str, int], context: bool) -> Row:
  """Counts a network."""
  program = NETWORKS[name].build(sizes)
  found = cost(
    program.function,
    program.params,
    program.data,
    context=context,
    feature_axes=program.feature_axes,
  )
  assert found.backward is not None
  return {
    "network": name,
    **sizes,
    "parameters": found.parameters,
    "connections": found.connections,
    "multiply_adds": found.forward.multiply_adds,
    "backward_multiply_adds": found.backward.multiply_adds,
    "flops": found.forward.flops,
    "activation_bytes": found.activation_bytes,
    "context": found.context,
    "scheduled_rounds": found.forward.scheduled_rounds,
    "dataflow_rounds": found.forward.dataflow_rounds,
    "uncounted": " ".join(found.forward.uncounted),
  }


def growth(name: str, base: Mapping[str, int], counts: Counts) -> Row:
  """Exponents of costs in every size, and increments of rounds."""

  def at(size: str, factor: int, what: str) -> float:
    sizes = {**base, size: factor * base[size]}
    return counts.get(name, sizes, False)[what]

  def exponent(size: str, what: str) -> float:
    return scaling(lambda factor: at(size, factor, what), [2, 4]).exponent

  exponents = {
    what: {size: exponent(size, what) for size in base}
    for what in ("connections", "multiply_adds", "activation_bytes")
  }
  steps = {
    what: {
      size: (at(size, 4, what) - at(size, 2, what)) / (2 * base[size])
      for size in base
    }
    for what in ("scheduled_rounds", "dataflow_rounds")
  }
  return {"network": name, "exponents": exponents, "round_steps": steps}


def run(config: Config, workdir: str | None = None) -> Row:
  """The experiment: count, fit, write.

  Raises:
    ValueError: a network cannot have these sizes, or wrong notation.
  """
  path = output.folder(workdir)
  result: Row = dataclasses.asdict(config)
  if config.convnet is None:
    result |= compare(config, path)
  else:
    layers = convnet_notation.layers(config.convnet)
    result["parameters"] = sum(layer.parameters for layer in layers)
    result["layers"] = [layer._asdict() for layer in layers]
  if path is not None:
    output.write_json(path / "result.json", result)
  return result


def compare(config: Config, path: pathlib.Path | None) -> Row:
  """Counts all networks at all sizes."""
  names = list(NETWORKS) if "all" in config.network else config.network
  counts = Counts(None if path is None else path / "counts.json")
  bases = {name: base_sizes(config, NETWORKS[name]) for name in names}
  todo = [
    (name, sizes)
    for name in names
    for sizes in points(bases[name], NETWORKS[name].data)
  ]
  rows = [
    counts.get(name, sizes, context=sizes == bases[name])
    for name, sizes in progress(todo, desc="counts")
  ]
  if path is not None:
    output.write_csv(path / "counts.csv", rows)
    figure(rows, bases).savefig(path / "architecture_costs.png", dpi=150)
  grown = [growth(name, bases[name], counts) for name in names]
  errors = [abs(error) for row in grown for error in deviations(row).values()]
  return {
    "largest_exponent_error": max(errors, default=None),
    "networks": [counts.get(name, bases[name], True) for name in names],
    "growth": grown,
  }


def deviations(grown: Row) -> dict[str, float]:
  """Of the exponents of connections from the textbook's."""
  expected = NETWORKS[grown["network"]].exponents
  found = grown["exponents"]["connections"]
  return {size: found[size] - expected[size] for size in expected}


# The report for people.


def report(result: Row) -> str:
  """Tables."""
  if result["convnet"] is not None:
    return convnet_notation.table(convnet_notation.layers(result["convnet"]))
  return "\n".join(
    [
      *table(result),
      "",
      *growth_table(result),
      "",
      *published(),
    ]
  )


def table(result: Row) -> list[str]:
  """What each network costs."""
  titles = (
    f"{'network':16}{'sizes':>22}{'parameters':>12}{'connections':>13}"
    f"{'mult-adds':>12}{'backward':>12}{'KiB kept':>10}{'context':>9}"
    f"{'scheduled':>11}{'dataflow':>10}"
  )
  lines = [f"{'':106}{'sequential rounds':>21}", titles]
  for row in result["networks"]:
    own = NETWORKS[row["network"]].data
    sizes = " ".join(f"{name}={row[name]}" for name in (*own, "d", "k"))
    context = "" if row["context"] is None else row["context"]
    lines.append(
      f"{row['network']:16}{sizes:>22}{row['parameters']:12,}"
      f"{row['connections']:13,}{row['multiply_adds']:12,}"
      f"{row['backward_multiply_adds']:12,}"
      f"{row['activation_bytes'] / 1024:10,.0f}{context:>9}"
      f"{row['scheduled_rounds']:11,}{row['dataflow_rounds']:10,}"
    )
    if row["uncounted"]:
      lines.append(f"  without the arithmetic of {row['uncounted']}")
  return lines


def growth_table(result: Row) -> list[str]:
  """How costs grow, beside the textbook."""
  lines = [
    f"{'network':16}{'connections':40}{'textbook':16}{'rounds':44}textbook"
  ]
  rows = {row["network"]: row for row in result["networks"]}
  for grown in result["growth"]:
    network = NETWORKS[grown["network"]]
    found = grown["exponents"]["connections"]
    powers = " ".join(f"{size}^{p:.2f}" for size, p in found.items())
    steps = grown["round_steps"]["dataflow_rounds"]
    rounds = affine(steps, rows[grown["network"]])
    lines.append(
      f"{grown['network']:16}{powers:40}{f'O({network.connections})':16}"
      f"{rounds:44}O({network.rounds})"
    )
  worst = result["largest_exponent_error"]
  if worst is not None:
    lines.append(f"Largest difference of an exponent: {worst:.3f}")
    lines += [
      f"  without {' and '.join(sizes)} of {grown['network']}, which also "
      "computes cells beyond the grid"
      for grown in result["growth"]
      if (sizes := left_out(grown))
    ]
  return lines


def left_out(grown: Row) -> list[str]:
  """Sizes in which connections are not compared with the textbook's."""
  compared = deviations(grown)
  return [s for s in grown["exponents"]["connections"] if s not in compared]


def affine(steps: Mapping[str, float], row: Row) -> str:
  """Rounds as a sum of multiples of sizes and a constant."""
  terms = [
    size if step == 1 else f"{step:g} {size}"
    for size, step in steps.items()
    if step
  ]
  rest = row["dataflow_rounds"]
  rest -= sum(step * row[size] for size, step in steps.items())
  sign = "-" if rest < 0 else "+"
  text = " + ".join(terms) if terms else "0"
  return text if math.isclose(rest, 0) else f"{text} {sign} {abs(rest):g}"


def published() -> list[str]:
  """Lists of layers whose parameters others have counted."""
  lines = []
  for name, (notation, expected) in _PUBLISHED.items():
    layers = convnet_notation.layers(notation)
    total = sum(layer.parameters for layer in layers)
    lines.append(f"{name}: {total:,} parameters, published {expected:,}")
  return lines


if __name__ == "__main__":
  launch(Config, run, report)
