"""Edits a training that has been: takes steps back, and goes on otherwise.

  python scripts/edit_history.py --workdir=out/edit_history

No checkpoint is kept; the training itself runs backward, bit for bit.

- A broken batch makes the loss spike, which is noticed 50 steps later: these
  are taken back, the batch is dropped, and the run goes on.
- An example is unlearned: back to before it was first seen, and on without it.
- From some step on a class had a wrong name: a bisection finds the step at
  which the accuracy on it broke, walking back and forth through the run.

The integers after the first two edits are compared with those of runs that
never saw the batch, or the example; expect that they are the same, to the last
bit.  Under a minute on 2 cores, and 0.14 bits a parameter and step, where a
checkpoint of every step takes 64 bits.

With --workdir it writes result.json, metrics.csv (losses by step) and
edits.png.
"""

import dataclasses
import time
from typing import Any

from editing import plots
from editing.edits import (
  Bisected,
  Spike,
  Unlearned,
  bisect,
  take_back_a_spike,
  unlearn,
)
from editing.problem import Config, pose
from shared import output
from shared.settings import launch

CHECKPOINT_BITS = 64  # of a weight and its velocity


def result_of(
  config: Config, spike: Spike, unlearned: Unlearned, bisected: Bisected
) -> dict[str, Any]:
  """Flat keys: what was edited, whether it is exact, and what that costs."""
  before = bisected.metric[bisected.found - 1]
  return {
    **dataclasses.asdict(config),
    "spike_at": spike.step,
    "spike_loss": float(spike.losses[spike.step]),
    "loss_after_spike": float(spike.losses[-10:].mean()),
    "loss_rolled_back": float(spike.edited[-10:].mean()),
    "spike_integers_same": spike.same,
    "rewind_seconds": spike.rewind_seconds,
    "forward_seconds": spike.forward_seconds,
    "example": unlearned.example,
    "example_first_seen": unlearned.first_seen,
    "example_uses": unlearned.uses,
    "largest_change_of_a_weight": unlearned.moved,
    "unlearning_integers_same": unlearned.same,
    "labels_wrong_from": bisected.broken_at,
    "metric_broke_at": bisected.found,
    "metric_before": float(before),
    "metric_there": float(bisected.metric[bisected.found]),
    "bisection_probes": len(bisected.probes),
    "bisection_steps": bisected.steps,
    "bisection_exact": all(
      value == bisected.metric[step] for step, value in bisected.probes
    ),
    "bits_per_parameter_and_step": unlearned.bits,
    "steps_between_checkpoints_of_that_size": (
      CHECKPOINT_BITS / max(unlearned.bits, 1e-9)
    ),
  }


def run(config: Config, workdir: str | None = None) -> dict[str, Any]:
  """The experiment: three edits.

  Raises:
    ValueError: flags that don't fit, or data that is not there.
    RuntimeError: a reversal was not exact, or an edit is not.
  """
  begin = time.perf_counter()
  path = output.folder(workdir)
  problem = pose(config)
  spike = take_back_a_spike(problem, config)
  unlearned = unlearn(problem, config)
  bisected = bisect(problem, config)
  result = result_of(config, spike, unlearned, bisected)
  result["seconds"] = time.perf_counter() - begin
  if path is not None:
    rows = [
      {
        "step": step,
        "spiked": float(a),
        "plain": float(b),
        "unlearned": float(c),
      }
      for step, (a, b, c) in enumerate(
        zip(spike.losses, unlearned.losses, unlearned.edited, strict=True)
      )
    ]
    figure = plots.edits(spike, unlearned, bisected)
    output.write_results(path, rows, {"edits": figure}, result)
  for name in ("spike_integers_same", "unlearning_integers_same",
               "bisection_exact"):  # fmt: skip
    if not result[name]:
      raise RuntimeError(
        f"{name} is false: a training that was edited is not the one that "
        "never was otherwise; scripts/doctor.py says what on this machine "
        "makes gradients irreproducible."
      )
  return result


def report(result: dict[str, Any]) -> str:
  """The result for people."""
  r = result
  return "\n".join(
    [
      f"spike              loss {r['spike_loss']:.3g} at step {r['spike_at']}; "
      f"{r['back']} steps taken back in {1e3 * r['rewind_seconds']:.1f} ms "
      f"(forward {1e3 * r['forward_seconds']:.1f} ms)",
      f"                   loss after it {r['loss_after_spike']:.3g}, rolled "
      f"back {r['loss_rolled_back']:.3g}",
      f"unlearning         example {r['example']}, first seen in step "
      f"{r['example_first_seen']} and {r['example_uses']} times in all, moved "
      f"weights by at most {r['largest_change_of_a_weight']:.2g}",
      "integers           those of runs that never saw the batch, the example",
      f"bisection          labels wrong from step {r['labels_wrong_from']}; "
      f"accuracy {r['metric_before']:.2f} -> {r['metric_there']:.2f} at step "
      f"{r['metric_broke_at']}, found in {r['bisection_probes']} looks and "
      f"{r['bisection_steps']} steps",
      f"memory             {r['bits_per_parameter_and_step']:.3f} bits a "
      "parameter and step: a checkpoint every "
      f"{r['steps_between_checkpoints_of_that_size']:.0f} steps takes as much",
      f"time               {r['seconds']:.1f} s",
    ]
  )


if __name__ == "__main__":
  launch(Config, run, report)
