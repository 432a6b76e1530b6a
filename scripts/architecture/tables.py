"""What was counted, for people."""

import math
from collections.abc import Mapping

from architecture.counts import Row, deviations
from architecture.networks import NETWORKS
from revmom.analysis import convnet_notation

_PUBLISHED = {
  "VGG-11": (convnet_notation.VGG11, 132_863_336),
  "VGG-16": (convnet_notation.VGG16, 138_357_544),
  "VGG-19": (convnet_notation.VGG19, 143_667_240),
}


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
