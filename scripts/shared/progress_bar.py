"""How far long work is: a bar on a terminal, elsewhere a line now and then."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

_SECONDS = 60.0  # from line to line


class Lines:
  """What stands for tqdm's bar where standard error is no terminal.

  A line a minute, without control characters, of whatever is being done; none
  for less than a minute.
  """

  last = time.monotonic()  # when there was one

  def __init__(
    self,
    iterable: Sequence[Any] | None = None,
    desc: str = "",
    total: int | None = None,
    initial: int = 0,
  ):
    """Arguments are those of tqdm."""
    if total is None and iterable is not None:
      total = len(iterable)
    self.iterable, self.total, self.done = iterable or (), total, initial
    self.words, self.behind = desc, ""
    self.begin = time.monotonic()

  def __iter__(self) -> Iterator[Any]:
    for item in self.iterable:
      yield item
      self.update()

  def update(self, number: int = 1) -> None:
    """So many more are done."""
    self.done += number
    now = time.monotonic()
    if now - Lines.last >= _SECONDS:
      Lines.last = now
      of = "" if self.total is None else f" of {self.total}"
      words = f"{self.words}: " if self.words else ""
      behind = f", {self.behind}" if self.behind else ""
      line = f"{words}{self.done}{of} in {now - self.begin:.0f} s{behind}"
      print(line, file=sys.stderr, flush=True)

  def set_description(self, words: str) -> None:
    """Words in front."""
    self.words = words

  def set_postfix_str(self, words: str) -> None:
    """Words behind."""
    self.behind = words

  def close(self) -> None:
    """Nothing is left to do."""

  def __enter__(self) -> "Lines":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def progress(*args: Any, **kwargs: Any) -> Lines:
  """tqdm's bar on a terminal, else lines; arguments are those of tqdm."""
  return (tqdm if sys.stderr.isatty() else Lines)(*args, **kwargs)
