"""Reversible recurrent networks that learn to write text.

  python scripts/reversible_language_model.py --workdir=out/reversible_text
  python scripts/reversible_language_model.py --text=tinyshakespeare.txt \
    --workdir=out/reversible_shakespeare

RevGRU and RevLSTM (MacKay, Vicol, Ba & Grosse 2018) predict each character from
those before it, beside a GRU and an LSTM of as many units.  Their gates may
forget at most 1, 2, 3, 5 or 8 bits of a number and step, as in table 1 of the
paper, where it is 1 to 5 bits or without limit; 8 is the most that a step can
forget here.  Training keeps nothing of a window but the bits that gates forget,
and restores every state from the last one, bit for bit: where one does not come
back, the gradient is NaN and the program stops.

Two savings are printed.  That of the paper, which reports factors of 10 to 15,
is 32 bits for each number of the state (two a unit in an LSTM) over the bits
that are kept.  The other one is that of memory: how much the compiled gradient
of the usual cell grows with a step, over how much that of the reversible one
does, whose stack has room for the most that its gates may forget.

With --limits=3 --steps=150, under two minutes on 2 cores, expect test
perplexities of 19.8, 23.0, 21.7 and 22.5 for GRU, LSTM, RevGRU and RevLSTM.
RevGRU keeps 1.77 bits a number and step and takes a 54th of GRU's memory a
step, RevLSTM 2.72 bits and a 16th.

With --workdir it writes result.json, metrics.csv (the loss of each model and
step), limits.png and checkpoints.  Running it again there goes on with the
first model that was not finished.
"""

import math
import time
from typing import Any

from reversible_text import learning, plots
from reversible_text.learning import Config
from shared import output, texts
from shared.checkpointing import done_before
from shared.pieces import Results, work
from shared.settings import launch

_USUAL = {"revgru": "gru", "revlstm": "lstm"}


def figures_of(config: Config, results: Results) -> dict[str, float]:
  """Of each model, under flat keys."""
  figures = {}
  for network in learning.networks_of(config):
    name, measured = network.name, results[network.name]
    for part in ("validation", "test"):
      figures[f"{name}_{part}_perplexity"] = math.exp(measured[f"{part}_loss"])
    if network.limit is not None:
      usual = results[_USUAL[network.cell]]["bytes_a_step"]
      figures[f"{name}_bits"] = measured["bits"]
      figures[f"{name}_savings"] = (
        32 * network.arrays / max(measured["bits"], 1e-3)
      )
      figures[f"{name}_memory_ratio"] = usual / measured["bytes_a_step"]
  return figures


def run(config: Config, workdir: str | None = None) -> dict[str, Any]:
  """The experiment: train, evaluate, count bits, write.

  Raises:
    OSError: the text can't be read.
    ValueError: the text or the workdir don't go with the flags.
    FloatingPointError: a loss was not finite.
  """
  begin = time.perf_counter()
  corpus = texts.load(config.text, config.data_dir, config.level)
  path = output.folder(workdir)
  results, before = work(learning.runs(config, corpus), path, config, corpus)
  result = {
    "text": config.text or config.data_dir or "pydoc_data.topics",
    "level": config.level,
    "vocabulary": len(corpus.vocabulary),
    "train_tokens": len(corpus.train.tokens),
    "steps": config.steps,
    **figures_of(config, results),
    "resumed_from": before,
    "seconds": time.perf_counter() - begin,
  }
  if path is not None:
    rows = [
      {"model": name, "step": step, "loss": loss}
      for name, measured in results.items()
      for step, loss in enumerate(measured["losses"])
    ]
    limits = sorted(set(config.limits))
    drawn = {"limits": plots.limits(result, limits)}
    output.write_results(path, rows, drawn, result)
  return result


def report(result: dict[str, Any]) -> str:
  """The result for people."""
  r = result
  lines = [
    f"{r['text']}: {r['train_tokens']:,} {r['level']}s to train on, "
    f"{r['vocabulary']} different ones; {r['steps']} steps each"
    f"{done_before(r)}",
    f"{'model':12}{'perplexity':>12}{'bits kept':>11}{'savings':>9}"
    f"{'memory':>8}",
    f"{'':12}{'test':>12}{'unit, step':>11}{'32 / bits':>9}{'ratio':>8}",
  ]
  ending = "_test_perplexity"
  for name in [k.removesuffix(ending) for k in r if k.endswith(ending)]:
    line = f"{name:12}{r[name + ending]:12.3f}"
    if f"{name}_bits" in r:
      line += (
        f"{r[f'{name}_bits']:11.3f}{r[f'{name}_savings']:9.1f}"
        f"{r[f'{name}_memory_ratio']:8.1f}"
      )
    lines.append(line)
  return "\n".join([*lines, f"{r['seconds']:.0f} s"])


if __name__ == "__main__":
  launch(Config, run, report)
