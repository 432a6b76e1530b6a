"""Pytrees out of frozen dataclasses."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import struct

from revmom.exact.pytree import Pytree, static


class Line(Pytree):
  slope: Any
  name: str = static(default="line")

  def at(self, x: Any) -> Any:
    return self.slope * x


class Curve(Line, kw_only=True):
  bend: Any
  points: tuple[int, ...] = struct.field(pytree_node=False)  # as Flax has it


CURVE = Curve(2.0, bend=3.0, points=(1, 2))


def test_dynamic_fields_are_leaves_with_their_names():
  paths = [
    (jax.tree_util.keystr(path), leaf)
    for path, leaf in jax.tree.leaves_with_path(CURVE)
  ]
  assert paths == [(".slope", 2.0), (".bend", 3.0)]
  doubled = jax.tree.map(lambda leaf: 2 * leaf, CURVE)
  assert doubled == Curve(4.0, bend=6.0, points=(1, 2))
  assert isinstance(doubled, Curve) and doubled.at(2.0) == 8.0


def test_static_fields_decide_about_compilation():
  traces = []

  @jax.jit
  def area(curve):
    traces.append(curve.name)
    return curve.slope * curve.bend

  area(CURVE)
  area(CURVE.replace(slope=1.0, points=(1, 2)))
  area(CURVE.replace(name="another"))
  assert traces == ["line", "another"]
  gradient = jax.grad(area)(CURVE)
  assert gradient == Curve(jnp.array(3.0), bend=jnp.array(2.0), points=(1, 2))


def test_it_is_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    CURVE.slope = 1.0
  with pytest.raises(TypeError, match="nonsense"):
    CURVE.replace(nonsense=1.0)
  assert CURVE.slope == 2.0
