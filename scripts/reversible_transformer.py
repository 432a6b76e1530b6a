"""Deep Transformers that restore their activations, beside a plain one.

  python scripts/reversible_transformer.py --workdir=out/transformer
  python scripts/reversible_transformer.py --dataset=mnist --data_dir=DIR \
    --workdir=out/transformer_mnist

A Transformer reads an image of a digit as patches of 2 x 2 pixels.  Its layers
are of three kinds:

  plain   x + h(x), activations kept
  revnet  two streams, attention on one and a perceptron on the other (Gomez,
          Ren, Urtasun & Grosse 2017; Kitaev, Kaiser & Levskaya 2020)
  bdia    blocks of bidirectional integration approximation, with a factor of
          -1/2 or 1/2 for each image and block in training, and 0, which makes
          them plain, in tests (Zhang, Lewis & Kleijn 2024)

The activations of the latter two are integers that the reverse pass restores
bit for bit; if they did not come back, losses would be NaN, which is an error.
Of each kind and depth it measures the memory that the compiler needs for a
step, the seconds of a step, and the test accuracy.

Five minutes on 2 busy CPU cores.  Expect that a step of 8, 50 and 200 layers
needs 8, 47 and 185 MB where activations are kept, but 0.8, 0.3 and 0.3 MB with
two streams and 1.1, 0.6 and 0.6 MB with BDIA, whose blocks keep a bit of every
activation, in no more time.  After the 100 steps, which are few, 80, 70 and
49 % of the test images are right where activations are kept, 75, 76 and 76 %
with two streams and 74, 66 and 44 % with BDIA.

With --workdir it writes result.json, metrics.csv (a row for each step),
costs.png, losses.png and checkpoints.  Running it again there goes on with the
first network that was not trained.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

from shared import image_data, output
from shared.pieces import work
from shared.settings import flag, launch
from streams import classifiers, network, plots


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  dataset: str = flag(
    "digits", "Images; all but digits in --data_dir.", choices=image_data.NAMES
  )
  data_dir: str | None = flag(None, "Folder of idx files.", may_change=True)
  depths: tuple[int, ...] = flag((8, 50, 200), "Layers.", at_least=1)
  width: int = flag(16, "Of a token; even, for two heads.", at_least=2)
  steps: int = flag(100, "Adam steps of each network.", at_least=1)
  batch_size: int = flag(32, "Images a step.", at_least=1)
  learning_rate: float = flag(3e-3, "At first; it decays.", at_least=0.0)
  seed: int = flag(0, "Of weights, batches and factors.")


def pieces(
  config: Config, data: image_data.Data
) -> Iterator[tuple[str, Callable[[], Any]]]:
  """The trainings, under a name each."""
  for kind in network.KINDS:
    for number in config.depths:
      yield (
        f"{kind} {number}",
        functools.partial(
          classifiers.train,
          kind,
          number,
          data,
          steps=config.steps,
          batch_size=config.batch_size,
          width=config.width,
          rate=config.learning_rate,
          seed=config.seed,
        ),
      )


def run(config: Config, workdir: str | None = None) -> dict[str, Any]:
  """The experiment: train, measure, write.

  Raises:
    ValueError: flags, the data or the workdir don't go together.
    FloatingPointError: a loss was not finite.
  """
  begin = time.perf_counter()
  if config.width % network.HEADS:
    raise ValueError(f"--width={config.width}; it must be even, for two heads.")
  data = image_data.load(config.dataset, config.data_dir)
  path = output.folder(workdir)
  results, before = work(pieces(config, data), path, config, data)
  rows = list(results.values())
  figures: dict[str, Any] = {}
  for row in rows:
    place = f"{row['kind']}_{row['depth']}"
    for name in ("accuracy", "megabytes", "seconds"):
      figures[f"{place}_{name}"] = row[name]
  for number in config.depths:
    plain = figures[f"plain_{number}_megabytes"]
    for kind in network.KINDS[1:]:
      ratio = plain / figures[f"{kind}_{number}_megabytes"]
      figures[f"{kind}_{number}_memory_ratio"] = ratio
  result = {
    "dataset": config.dataset,
    "resumed_from": before,
    **figures,
    "total_seconds": time.perf_counter() - begin,
  }
  if path is not None:
    metrics = [
      {"kind": r["kind"], "depth": r["depth"], "step": step, "loss": loss}
      for r in rows
      for step, loss in enumerate(r["losses"])
    ]
    drawn = {"costs": plots.costs(rows), "losses": plots.losses(rows)}
    output.write_results(path, metrics, drawn, result)
  return result


def report(result: dict[str, Any]) -> str:
  """The result for people."""
  lines = [f"{'layers':12}{'test accuracy':>15}{'MB':>10}{'s a step':>10}"]
  for key in result:
    if key.endswith("_accuracy"):
      place = key.removesuffix("_accuracy")
      lines.append(
        f"{place.replace('_', ' '):12}{result[key]:>15.1%}"
        f"{result[f'{place}_megabytes']:>10.1f}"
        f"{result[f'{place}_seconds']:>10.3f}"
      )
  return "\n".join([*lines, f"{result['total_seconds']:.0f} s"])


if __name__ == "__main__":
  launch(Config, run, report)
