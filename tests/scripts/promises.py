"""Runs what the documentation says, and compares with what it promises.

  python tests/scripts/promises.py [NAME ...]

The commands and numbers are those of scripts/promised.toml; without names all
are run.  Those with {data} need the variable DATA, a folder, and are left out
without it.  A summary follows, and the exit code is 1 if any promise is broken.
"""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]


def promised() -> dict[str, dict[str, Any]]:
  """Name -> command, says and expect."""
  text = (ROOT / "scripts" / "promised.toml").read_text()
  return tomllib.loads(text)


def broken(expect: dict[str, Any], result: dict[str, Any]) -> list[str]:
  """What is not as promised, in words."""
  words = []
  for key, value in expect.items():
    found = result.get(key)
    if isinstance(value, list):
      number, tolerance = value
      kept = isinstance(found, int | float) and (
        abs(found - number) <= tolerance
      )
      value = f"{number} +- {tolerance}"
    else:
      kept = found == value
    if not kept:
      words.append(f"{key} is {found}, promised {value}")
  return words


def kept(name: str, promise: dict[str, Any]) -> list[str]:
  """Runs a command, and says what is wrong."""
  command = promise["command"].replace("{data}", os.environ.get("DATA", ""))
  print(f"\n$ {command}", flush=True)
  with tempfile.TemporaryDirectory() as folder:
    words = shlex.split(command)
    done = subprocess.run(
      [sys.executable, *words, f"--workdir={folder}"], cwd=ROOT, check=False
    )
    path = pathlib.Path(folder) / "result.json"
    if done.returncode or not path.exists():
      return [f"exit code {done.returncode}, result.json {path.exists()}"]
    return broken(promise["expect"], json.loads(path.read_text()))


def main(names: list[str]) -> int:
  """The exit code."""
  promises = promised()
  unknown = sorted(set(names) - set(promises))
  if unknown:
    print(f"no {', '.join(unknown)}; choose from {', '.join(promises)}")
    return 2
  lines, failures = [], 0
  for name in names or promises:
    if "{data}" in promises[name]["command"] and "DATA" not in os.environ:
      lines.append(f"{name:38}          not run: DATA names no folder")
      continue
    begin = time.monotonic()
    wrong = kept(name, promises[name])
    failures += bool(wrong)
    seconds = time.monotonic() - begin
    verdict = "FAILED: " + "; ".join(wrong) if wrong else "as promised"
    lines.append(f"{name:38} {seconds:6.0f} s  {verdict}")
  print("\nSummary", *lines, sep="\n")
  return int(failures > 0)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
