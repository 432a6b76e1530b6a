"""Reports what on this machine threatens exactness, and tests reversals.

  python scripts/doctor.py --workdir=out/doctor

Two to three minutes on 2 cores.  Expect OK in all twelve lines of the
self-test, and exit status 0; it is 1 if a reversal fails or jit returns wrong
numbers.

An exact reversal recomputes every gradient and needs the same bits.  First the
settings that decide about them are listed, each with a remedy; then short
runs, in float32 and bfloat16, are trained and rewound, hypergradients are taken
through them, and the cheapest mode in which all are numbers is recommended.
--workdir receives result.json; a second visit says what has changed since the
first one, and whether another process computes the same bits.
"""

import dataclasses
import json
import pathlib
import platform
import sys
from typing import Any

import revmom
from diagnosis.environment import findings
from diagnosis.self_test import examine, recommended
from shared import output
from shared.settings import flag, launch
from shared.user_files import blamed

_MARK = {True: "ok  ", False: "WARN", None: "    "}


@dataclasses.dataclass(frozen=True)
class Config:
  """Of the self-test."""

  steps: int = flag(50, "SGD steps of each run of the self-test.", at_least=1)
  seed: int = flag(0, "Of weights and data.")


def last_visit(workdir: str | None) -> dict[str, Any] | None:
  """The result of the last visit, if there was one.

  Raises:
    ValueError: it can't be read.
  """
  path = pathlib.Path(workdir or ".") / "result.json"
  if not workdir or not path.exists():
    return None
  with blamed(str(path)):
    return dict(json.loads(path.read_text()))


def since(before: dict[str, Any] | None, result: dict[str, Any]) -> list[str]:
  """What has changed since the last visit with the same steps and seed."""
  if before is None:
    return ["this is the first visit; the next one compares with it"]
  same = lambda name: before.get(name) == result[name]
  lines = [
    f"{name}: {before.get(name)!r} then, {value!r} now"
    for name, value in result.items()
    if name.startswith("fingerprint_") and not same(name)
  ]
  digests = [name for name in result if name.startswith("digest_")]
  if not (same("steps") and same("seed")):
    return [*lines, "other --steps or --seed: bits can't be compared"]
  other = [name.removeprefix("digest_") for name in digests if not same(name)]
  if not other:
    return [*lines, "same bits: a saved run can be rewound by another process"]
  return [
    *lines,
    f"other bits in {', '.join(other)}: "
    + (
      "to be expected after such a change"
      if lines
      else "rewind in the process that trained"
    ),
  ]


def visit(steps: int, seed: int, workdir: str | None) -> dict[str, Any]:
  """Prints the report and returns its figures.

  Raises:
    FloatingPointError: a loss of the self-test is not finite.
  """
  before = last_visit(workdir)
  path = output.folder(workdir)
  found = list(findings())
  print("\nWhat decides whether gradients are recomputed bit for bit")
  for finding in found:
    remedy = f"  <- {finding.remedy}" if finding.remedy else ""
    print(f"  {_MARK[finding.ok]} {finding.name:22}{finding.value}{remedy}")
  outcomes = examine(steps, seed)
  print(f"\nSelf-test: {steps} steps trained, then rewound")
  for name, outcome in outcomes.items():
    line = f"  {name:22}{outcome.verdict:10}{outcome.seconds:5.1f} s"
    print(f"{line}  {outcome.detail}".rstrip())
  mode = recommended(outcomes, steps, seed)
  print(
    f'\nHypergradients: second_order_mode="{mode}" is recommended'
    if mode
    else "\nHypergradients: no mode is exact here.  On a CPU set XLA_FLAGS="
    "--xla_cpu_enable_concurrency_optimized_scheduler=false (BUILD.md)"
  )
  wrong = [f.name for f in found if f.name.startswith("jax#") and not f.ok]
  result = {
    "ok": not wrong and all(outcome.ok for outcome in outcomes.values()),
    "warnings": sum(finding.ok is False for finding in found),
    "steps": steps,
    "seed": seed,
    "second_order_mode": mode,
    **{
      f"fingerprint_{k}": v for k, v in revmom.fingerprint()._asdict().items()
    },
    **{f"verdict_{name}": o.verdict for name, o in outcomes.items()},
    **{f"digest_{name}": o.digest for name, o in outcomes.items()},
  }
  if path is not None:
    print("\nSince the last visit")
    for line in since(before, result):
      print(f"  {line}")
    output.write_json(path / "result.json", result)
  return result


def main(config: Config, workdir: str | None) -> str:
  print(f"python {sys.version.split()[0]}, {platform.machine()}")
  result = visit(config.steps, config.seed, workdir)
  if not result["ok"]:
    sys.exit("\nNOT OK")
  return "\nOK"


if __name__ == "__main__":
  launch(Config, main)
