"""The settings of a program, stated once: a dataclass whose fields are flags.

  @dataclasses.dataclass(frozen=True)
  class Config:
    steps: int = flag(1000, "SGD steps.", at_least=1)
    model: str = flag("mlp", "The classifier.", choices=["mlp", "conv"])
    depths: tuple[int, ...] = flag((2, 10), "Layers.", at_least=1)

  if __name__ == "__main__":
    launch(Config, run, report)

gives the program the flags --steps=1000, --model=mlp, --depths=2,10 and
--workdir.
"""

import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
from absl import app, flags, logging

# So that --help lists flags that are defined here as those of the program.
flags.disclaim_key_flags()

T = TypeVar("T")


def flag(
  default: Any,
  text: str,
  *,
  choices: Iterable[str] | None = None,
  at_least: float | None = None,
  at_most: float | None = None,
  repeated: bool = False,
  may_change: bool = False,
) -> Any:
  """A field of a dataclass of settings, of the type that is annotated.

  Args:
    default: its value where the flag is not given.
    text: for --help.
    choices: all values that are allowed.
    at_least: the lower bound of a number, or of each of several.
    at_most: the upper bound.
    repeated: whether the values of a tuple are given by a flag each, and not
      between commas.
    may_change: whether a run may be resumed with another value.
  """
  about = {
    "text": text,
    "choices": None if choices is None else list(choices),
    "bounds": (at_least, at_most),
    "repeated": repeated,
    "may_change": may_change,
  }
  return dataclasses.field(default=default, metadata=about)


class _Numbers(flags.ArgumentParser):
  """Reads numbers between commas."""

  def __init__(self, number: flags.ArgumentParser, name: str):
    self.number, self.name = number, name

  def parse(self, argument: Any) -> tuple[Any, ...]:
    """Numbers, of a text or of other numbers."""
    parts = argument.split(",") if isinstance(argument, str) else argument
    try:
      return tuple(self.number.parse(part) for part in parts)
    except (TypeError, ValueError) as error:
      raise ValueError(
        f"expected {self.name}s between commas: {error}"
      ) from error

  def flag_type(self) -> str:
    """For --help."""
    return f"{self.name}s between commas"


def _element(annotation: Any) -> tuple[type, bool]:
  """The type of a value, and whether a setting has several: a tuple."""
  options = typing.get_args(annotation)
  if isinstance(annotation, types.UnionType):
    (annotation,) = (kind for kind in options if kind is not type(None))
    options = typing.get_args(annotation)
  if typing.get_origin(annotation) is tuple:
    return options[0], True
  return annotation, False


def define(
  config_class: type, flag_values: flags.FlagValues = flags.FLAGS
) -> None:
  """Defines a flag for each field of a dataclass of settings."""
  annotations = typing.get_type_hints(config_class)
  for field in dataclasses.fields(config_class):
    kind, several = _element(annotations[field.name])
    about = field.metadata
    form = ("repeated" if about["repeated"] else "list") if several else "one"
    keywords: dict[str, Any] = {"help": about["text"]}
    if about["choices"] is not None:
      form = f"{form} of choices"
      keywords["enum_values"] = about["choices"]
    elif kind in (int, float):
      keywords["lower_bound"], keywords["upper_bound"] = about["bounds"]
    default = field.default
    if isinstance(default, tuple):
      default = list(default)  # which is all that absl accepts
    _DEFINE[kind, form](
      field.name, default, flag_values=flag_values, **keywords
    )


def _define_numbers(
  parser: Callable[..., flags.ArgumentParser],
  kind: str,
  name: str,
  default: Any,
  lower_bound: float | None,
  upper_bound: float | None,
  **keywords: Any,
) -> None:
  """A flag of several numbers between commas."""
  numbers = _Numbers(parser(lower_bound, upper_bound), kind)
  serializer: Any = flags.CsvListSerializer(",")
  flags.DEFINE(numbers, name, default, serializer=serializer, **keywords)


_DEFINE: dict[tuple[type, str], Callable[..., Any]] = {
  (bool, "one"): flags.DEFINE_bool,
  (int, "one"): flags.DEFINE_integer,
  (int, "list"): functools.partial(
    _define_numbers, flags.IntegerParser, "integer"
  ),
  (int, "repeated"): flags.DEFINE_multi_integer,
  (float, "one"): flags.DEFINE_float,
  (float, "list"): functools.partial(
    _define_numbers, flags.FloatParser, "number"
  ),
  (float, "repeated"): flags.DEFINE_multi_float,
  (str, "one"): flags.DEFINE_string,
  (str, "list"): flags.DEFINE_list,
  (str, "repeated"): flags.DEFINE_multi_string,
  (str, "one of choices"): flags.DEFINE_enum,
  (str, "repeated of choices"): flags.DEFINE_multi_enum,
}


def read(
  config_class: type[T], flag_values: flags.FlagValues = flags.FLAGS
) -> T:
  """The settings that the flags have been given.

  Raises:
    ValueError: a value is NaN or infinite, which bounds of flags let pass.
  """
  values = {}
  for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
    value = flag_values[field.name].value
    values[field.name] = tuple(value) if isinstance(value, list) else value
    for number in value if isinstance(value, list | tuple) else [value]:
      if isinstance(number, float) and not math.isfinite(number):
        raise ValueError(
          f"--{field.name}={number}: it must be a finite number."
        )
  return config_class(**values)


def launch(
  config_class: type[T],
  run: Callable[[T, str | None], Any],
  report: Callable[[Any], str] = str,
) -> None:
  """Parses the flags, runs a program and prints its report.

  What a user can mend ends the program with one line and exit code 1, Ctrl-C
  with one line and 130; the traceback is shown at --verbosity=1.

  Args:
    config_class: the dataclass of its settings.
    run: (settings, --workdir) -> its result.
    report: result -> what is printed.
  """

  def main(argv: list[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f"Unexpected arguments {argv[1:]}; flags begin --.")
    # absl's default is INFO, at which orbax reports every file.
    if flags.FLAGS.verbosity == logging.INFO:
      logging.set_verbosity(logging.WARNING)
    try:
      print(report(run(read(config_class), flags.FLAGS.workdir)))
    except KeyboardInterrupt:
      logging.debug("traceback:", exc_info=True)
      print("interrupted", file=sys.stderr)
      sys.exit(130)
    except MemoryError as error:
      logging.debug("traceback:", exc_info=True)
      sys.exit(f"error: out of memory {error}".rstrip())
    except (OSError, ValueError, ArithmeticError, RuntimeError) as error:
      logging.debug("traceback:", exc_info=True)
      sys.exit(f"error: {error}")

  define(config_class)
  flags.DEFINE_string("workdir", None, "Folder that results are written to.")
  jax.config.config_with_absl()
  app.run(main)
