"""Momentum ResNets whose activations are restored bit for bit, beside others.

  python scripts/momentum_resnet.py --workdir=out/momentum_resnet
  python scripts/momentum_resnet.py --dataset=mnist --data_dir=DIR \
    --workdir=out/momentum_mnist

A layer of a Momentum ResNet, v' = gamma v + (1 - gamma) f(x), x' = x + v'
(Sander, Ablin, Blondel & Peyre 2021, "Momentum residual neural networks"), can
be undone, so that a gradient need not keep activations.  Measured are

  - errors of gradients by depth, beside float64 that keeps everything: of
    revmom.depth, of reversal in floats, and of the bit store of momentumnet
    0.10, computed as it does, which loses negative velocities and overflows;
  - the temporary memory of a gradient by depth, as the compiler counts it;
  - whether nested rings in the plane are separated (after their figure 5): a
    ResNet whose layers are one to one can't do it, a Momentum ResNet can;
  - the accuracy on images of digits at many depths, of which the last step of
    every training went through gradients that kept no activations.

Four minutes on 2 CPU cores.  Expect errors of gradients from 3e-7 to 8e-5, the
largest of 500 layers at gamma = 0.99, which come from rounding values to 2^-22
once; all activations come back.  Reversal in floats has 4e-1 at gamma = 0.5 and
30 layers and at 0.9 and 200, and is no number at all at 0.1 and 100; the
truncating store has 3e-1 and 4e-1 there, and 2.2.  At gamma = 0.99 floats do
not drift and are the better choice.  A gradient of 1000 layers takes 10 MB, a
64th of what keeping activations takes (published: a 17th at depth 900).  The
Momentum ResNet separates 100 % of the points of the rings, the ResNet 95.5 %.
Of the test images networks of 500 layers get 95.7 % right (a ResNet that keeps
its activations 95.3 %), of 100 layers 96.7 % (97.0 %).

A gradient whose activations did not come back is an error.  With --workdir it
writes result.json, metrics.csv (a row for each gamma and depth), errors.png,
memory.png, rings.png, images.png and checkpoints.  Running it again there goes
on with the first part that was not finished.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

from momentum_layers import gradients, images, plots, rings
from shared import image_data, output
from shared.pieces import Results, work
from shared.settings import flag, launch

# Errors of momentumnet 0.10 itself, in its memory-free mode, by gamma and
# depth, measured with networks of the same sizes.
MOMENTUMNET = {(0.1, 30): 13.4, (0.5, 30): 0.85, (0.9, 200): 2.28}
PUBLISHED_RATIO = 17  # of memory, at depth 900: 2 GiB beside 120 MiB, figure 3
NAMES = ("resnet", "momentum")


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  dataset: str = flag(
    "digits", "Images; all but digits in --data_dir.", choices=image_data.NAMES
  )
  data_dir: str | None = flag(None, "Folder of idx files.", may_change=True)
  gammas: tuple[float, ...] = flag(
    (0.1, 0.5, 0.9, 0.99), "Whose gradients are compared.", at_least=0.05
  )
  depths: tuple[int, ...] = flag(
    (10, 30, 100, 200, 500), "At which they are.", at_least=1
  )
  memory_depths: tuple[int, ...] = flag(
    (10, 30, 100, 300, 1000), "At which memory is counted.", at_least=1
  )
  ring_depth: int = flag(15, "Layers that separate rings.", at_least=3)
  ring_steps: int = flag(1000, "Adam steps of each.", at_least=1)
  ring_rate: float = flag(0.02, "Of these.", at_least=0.0)
  image_depths: tuple[int, ...] = flag(
    (10, 100, 500), "Layers of the classifiers.", at_least=1
  )
  image_steps: int = flag(100, "Adam steps of each.", at_least=1)
  batch_size: int = flag(64, "Images a step.", at_least=1)
  image_rate: float = flag(3e-3, "Of these.", at_least=0.0)
  seed: int = flag(0, "Of weights, inputs and batches.")


def pieces(
  config: Config, data: image_data.Data
) -> Iterator[tuple[str, Callable[[], Any]]]:
  """What is done, under a name each."""
  seed = config.seed
  for gamma in config.gammas:
    for number in config.depths:
      yield (
        f"error {gamma} {number}",
        functools.partial(gradients.errors, gamma, number, seed),
      )
  for number in config.memory_depths:
    yield (
      f"memory {number}",
      functools.partial(gradients.megabytes, rings.GAMMA, number),
    )
  for name in NAMES:
    yield (
      f"rings {name}",
      functools.partial(
        rings.train,
        name,
        config.ring_depth,
        config.ring_steps,
        config.ring_rate,
        seed,
      ),
    )
    for number in config.image_depths:
      yield (
        f"images {name} {number}",
        functools.partial(
          images.train,
          name,
          number,
          data,
          config.image_steps,
          config.batch_size,
          config.image_rate,
          seed,
        ),
      )


def headline(config: Config, results: Results) -> dict[str, Any]:
  """Flat keys of result.json."""
  found: dict[str, Any] = {}
  for row in _of(results, "error"):
    place = f"{row['gamma']}_{row['depth']}"
    for name in ("revmom", "float_reversal", "truncating_store", "kept"):
      found[f"error_{place}_{name}"] = row[name]
    known = MOMENTUMNET.get((row["gamma"], row["depth"]))
    if known is not None:
      found[f"momentumnet_error_{place}_truncating_store"] = known
  found["all_restored"] = all(row["restored"] for row in _of(results, "error"))
  for row in _of(results, "memory"):
    found[f"megabytes_{row['depth']}"] = row["revmom"]
    found[f"memory_ratio_{row['depth']}"] = row["kept"] / row["revmom"]
  found["published_memory_ratio_900"] = PUBLISHED_RATIO
  for name in NAMES:
    found[f"rings_{name}"] = results[f"rings {name}"]["accuracy"]
    for number in config.image_depths:
      row = results[f"images {name} {number}"]
      found[f"accuracy_{name}_{number}"] = row["accuracy"]
  return found


def _of(results: Results, kind: str) -> list[dict[str, Any]]:
  return [row for name, row in results.items() if name.split()[0] == kind]


def run(config: Config, workdir: str | None = None) -> dict[str, Any]:
  """The experiment: measure, train, write, check.

  Raises:
    ValueError: flags, the data or the workdir don't go together.
    RuntimeError: activations did not come back.
  """
  begin = time.perf_counter()
  data = image_data.load(config.dataset, config.data_dir)
  path = output.folder(workdir)
  results, before = work(pieces(config, data), path, config, data)
  result = {
    "dataset": config.dataset,
    "resumed_from": before,
    **headline(config, results),
    "seconds": time.perf_counter() - begin,
  }
  if path is not None:
    errors, memory = _of(results, "error"), _of(results, "memory")
    by_name = {name: results[f"rings {name}"] for name in NAMES}
    of_images = {
      name: [results[f"images {name} {d}"] for d in config.image_depths]
      for name in NAMES
    }
    drawn = {
      "errors": plots.errors(errors),
      "memory": plots.memory(memory),
      "rings": plots.rings(by_name, rings.points(config.seed)[1]),
      "images": plots.images(of_images),
    }
    output.write_results(path, errors, drawn, result)
  if not result["all_restored"]:  # at the end, so that it can be looked at
    raise RuntimeError("activations of a gradient did not come back.")
  return result


def report(result: dict[str, Any]) -> str:
  """The result for people."""
  number = lambda value: "-" if value is None else f"{value:.1e}"
  ways = ("revmom", "float_reversal", "truncating_store", "kept")
  lines = [
    "relative error of a gradient beside float64",
    f"{'gamma, layers':16}" + "".join(f"{way:>18}" for way in ways),
  ]
  places = [
    key.removeprefix("error_").removesuffix("_revmom")
    for key in result
    if key.startswith("error_") and key.endswith("_revmom")
  ]
  for place in places:
    cells = [number(result[f"error_{place}_{way}"]) for way in ways]
    known = result.get(f"momentumnet_error_{place}_truncating_store")
    after = "" if known is None else f"   (momentumnet itself: {known})"
    name = place.replace("_", ", ")
    lines.append(f"{name:16}" + "".join(f"{c:>18}" for c in cells) + after)
  for key, value in result.items():
    if key.startswith("memory_ratio_"):
      layers = key.removeprefix("memory_ratio_")
      lines.append(
        f"{layers} layers: {result[f'megabytes_{layers}']:.1f} MB, "
        f"1/{value:.1f} of what keeping takes"
      )
  lines.append(
    "rings: "
    + ", ".join(f"{name} {result[f'rings_{name}']:.1%}" for name in NAMES)
  )
  for key, value in result.items():
    if key.startswith("accuracy_"):
      _, name, layers = key.split("_")
      lines.append(f"{name} of {layers} layers: {value:.1%} right")
  return "\n".join([*lines, f"{result['seconds']:.0f} s"])


if __name__ == "__main__":
  launch(Config, run, report)
