"""Numbers that a model is built with, checked."""


def at_least(least: int, **numbers: int) -> None:
  """Raises ValueError for a number below the least that makes sense.

  >>> at_least(1, width=3, depth=0)
  Traceback (most recent call last):
  ValueError: got depth=0, expected 1 or more.
  """
  for name, number in numbers.items():
    if number < least:
      raise ValueError(f"got {name}={number}, expected {least} or more.")
