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
import pathlib

from architecture.counts import (
  Config,
  Counts,
  Row,
  base_sizes,
  deviations,
  growth,
  points,
)
from architecture.networks import NETWORKS
from architecture.plots import figure
from architecture.tables import growth_table, published, table
from revmom.analysis import convnet_notation
from shared import output
from shared.progress_bar import progress
from shared.settings import launch


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


if __name__ == "__main__":
  launch(Config, run, report)
