"""Makes the gallery: figures of scripts, and published values beside ours.

    python docs/gallery.py                       # the page, from what is there
    python docs/gallery.py train learn_schedule  # runs these first
    DATA=DIR python docs/gallery.py maclaurin2015_figure_2

Names and commands are those of scripts/promised.toml, which `.ci/run weekly`
compares with what it measures; docs/gallery.toml has what the page says of
them.  A command runs in out/gallery/NAME, once; of its figure a small copy is
made, docs/gallery/NAME.png.  Then the page, docs/gallery.md, is written anew
below its first part.
"""

import itertools
import os
import pathlib
import shlex
import subprocess
import sys
import tomllib
from typing import Any

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
PAGE = DOCS / "gallery.md"
BEGIN = "<!-- written by docs/gallery.py -->"
WIDTHS, COLORS = (860, 760, 660, 560, 460), (256, 64, 32)
LARGEST = 60_000  # bytes


def promised() -> dict[str, dict[str, Any]]:
  """What each command promises."""
  return tomllib.loads((ROOT / "scripts" / "promised.toml").read_text())


def entries() -> dict[str, dict[str, Any]]:
  """What the page says of each command, in its order."""
  return tomllib.loads((DOCS / "gallery.toml").read_text())


def run(name: str) -> None:
  """Runs a command, unless it has run, and makes the small figure."""
  folder = ROOT / "out" / "gallery" / name
  if not (folder / "result.json").exists():
    command = promised()[name]["command"]
    command = command.replace("{data}", os.environ.get("DATA", ""))
    subprocess.run(
      [sys.executable, *shlex.split(command), f"--workdir={folder}"],
      cwd=ROOT,
      check=True,
    )
  figure = entries()[name]["figure"]
  if figure:
    shrink(folder / f"{figure}.png", DOCS / "gallery" / f"{name}.png")


def shrink(source: pathlib.Path, target: pathlib.Path) -> None:
  """A copy that is small enough to be kept with the code."""
  from PIL import Image

  image = Image.open(source).convert("RGB")
  for width, colors in itertools.product(WIDTHS, COLORS):
    size = width, round(image.height * width / image.width)
    small = image.resize(size, Image.Resampling.LANCZOS)
    # Without dithering areas stay even and the file small.
    small = small.quantize(colors, kmeans=2, dither=Image.Dither.NONE)
    small.save(target, optimize=True)
    if target.stat().st_size <= LARGEST:
      return
  raise ValueError(f"{source} does not fit into {LARGEST} bytes.")


def page() -> str:
  """The part of the page below its first one."""
  promises, lines = promised(), [BEGIN, ""]
  for name, entry in entries().items():
    lines += [f"## {entry['title']}", "", f"{entry['source']}.", ""]
    if (DOCS / "gallery" / f"{name}.png").exists():
      lines += [f"![{entry['title']}](gallery/{name}.png)", ""]
    elif entry["figure"]:
      minutes = entry.get("minutes")
      how = f"takes {minutes} minutes" if minutes else "makes it"
      lines += [f"The figure is not kept here; the command {how}.", ""]
    lines += ["| | published | here |", "|---|---|---|"]
    for quantity, published, key in entry["rows"]:
      here = shown(promises[name]["expect"][key])
      lines.append(f"| {quantity} | {published or '–'} | {here} |")
    command = promises[name]["command"].replace("{data}", "DIR")
    lines += ["", "```sh", f"python {command} --workdir=out/{name}", "```", ""]
  return "\n".join(lines)


def shown(promise: Any) -> str:
  """A promised value as people read it."""
  if not isinstance(promise, list):
    return "yes" if promise is True else str(promise)
  value, tolerance = promise
  return (
    f"at most {tolerance:g}" if value == 0 and tolerance else f"{value:.7g}"
  )


def main(names: list[str]) -> None:
  """Runs what is named, and writes the page."""
  unknown = sorted(set(names) - set(entries()))
  if unknown:
    sys.exit(f"no {', '.join(unknown)}; choose from {', '.join(entries())}")
  for name in names:
    run(name)
  first = PAGE.read_text().partition(BEGIN)[0]
  PAGE.write_text(first + page())


if __name__ == "__main__":
  main(sys.argv[1:])
