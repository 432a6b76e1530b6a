"""What is counted of networks of several sizes."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from architecture.networks import NETWORKS, Network
from revmom.analysis import cost, scaling
from shared import output
from shared.settings import flag
from shared.user_files import blamed


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


def deviations(grown: Row) -> dict[str, float]:
  """Of the exponents of connections from the textbook's."""
  expected = NETWORKS[grown["network"]].exponents
  found = grown["exponents"]["connections"]
  return {size: found[size] - expected[size] for size in expected}
