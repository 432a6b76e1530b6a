"""Flags made of a dataclass."""

import dataclasses
import math

import pytest
from absl import flags


@pytest.fixture(scope="module")
def settings(load):
  return load("shared.settings")


@pytest.fixture(scope="module")
def config_class(settings):
  flag = settings.flag

  @dataclasses.dataclass(frozen=True)
  class Config:
    steps: int = flag(5, "Steps.", at_least=1)
    rate: float = flag(0.5, "Rate.", at_least=0.0, at_most=1.0)
    data_dir: str | None = flag(None, "Folder.")
    points: int | None = flag(None, "Points.", at_least=2)
    fresh: bool = flag(True, "Fresh.")
    model: str = flag("mlp", "Model.", choices=["mlp", "conv"])
    names: tuple[str, ...] = flag(("a", "b"), "Names.")
    depths: tuple[int, ...] = flag((2, 10), "Depths.", at_least=1)
    gains: tuple[float, ...] | None = flag(None, "Gains.", at_least=0.0)
    sizes: tuple[int, ...] = flag((64,), "Sizes.", at_least=2, repeated=True)
    networks: tuple[str, ...] = flag(
      ("all",), "Networks.", choices=("all", "one"), repeated=True
    )

  return Config


@pytest.fixture
def parse(settings, config_class):
  def parse(*given):
    values = flags.FlagValues()
    settings.define(config_class, values)
    values(["program", *given])
    return settings.read(config_class, values)

  return parse


def test_without_flags_all_are_the_defaults(parse, config_class):
  assert parse() == config_class()


def test_flags_of_every_type(parse, config_class):
  assert parse(
    "--steps=3",
    "--rate=1",
    "--data_dir=here",
    "--points=2",
    "--nofresh",
    "--model=conv",
    "--names=c",
    "--depths=7,1",
    "--gains=0.5,2",
    "--sizes=3",
    "--sizes=4",
    "--networks=one",
  ) == config_class(
    steps=3,
    rate=1.0,
    data_dir="here",
    points=2,
    fresh=False,
    model="conv",
    names=("c",),
    depths=(7, 1),
    gains=(0.5, 2.0),
    sizes=(3, 4),
    networks=("one",),
  )


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ("--steps=0", "a positive integer"),
    ("--rate=1.5", r"range \[0.0, 1.0\]"),
    ("--points=1", "integer >= 2"),
    ("--model=rnn", "<mlp|conv>"),
    ("--depths=2,x", "--depths=2,x: expected integers between commas"),
    ("--depths=2,0", "--depths=2,0: expected integers between commas"),
    ("--gains=", "--gains=: expected numbers between commas"),
    ("--sizes=1", "integer >= 2"),
  ],
)
def test_what_is_wrong_is_named(parse, given, message):
  with pytest.raises(flags.IllegalFlagValueError, match=message):
    parse(given)


def test_numbers_are_finite(parse):
  for given in ("--rate=nan", f"--gains=1,{math.inf}"):
    with pytest.raises(ValueError, match="must be a finite number"):
      parse(given)
