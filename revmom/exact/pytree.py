"""Frozen dataclasses that JAX takes for pytrees.

As `flax.struct.PyTreeNode`, without the time that importing Flax takes.
"""

import dataclasses
from typing import Any, Self, dataclass_transform

import jax

_IS_NODE = "pytree_node"  # the key that `flax.struct.field` has, too


def static(**options: Any) -> Any:
  """A field that is part of the structure; it must be hashable.

  Args:
    **options: those of `dataclasses.field`.
  """
  return dataclasses.field(metadata={_IS_NODE: False}, **options)


def is_static(field: dataclasses.Field) -> bool:
  """Whether a field is part of the structure."""
  return not field.metadata.get(_IS_NODE, True)


@dataclass_transform(
  frozen_default=True, field_specifiers=(static, dataclasses.field)
)
class Pytree:
  """A subclass is a frozen dataclass, and a pytree of all but static fields.

  Keywords of the subclass are those of `dataclasses.dataclass`.

  >>> class Line(Pytree):
  ...   slope: Any
  ...   name: str = static(default="a line")
  >>> line = Line(2.0)
  >>> jax.tree.map(lambda leaf: -leaf, line)
  Line(slope=-2.0, name='a line')
  >>> line.replace(name="a steep line")
  Line(slope=2.0, name='a steep line')
  """

  def __init_subclass__(cls, **options: Any):
    super().__init_subclass__()
    dataclasses.dataclass(frozen=True, **options)(cls)
    names: dict[bool, list[str]] = {True: [], False: []}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
      names[is_static(field)].append(field.name)
    jax.tree_util.register_dataclass(cls, names[False], names[True])

  def replace(self, **fields: Any) -> Self:
    """A copy with other values of some fields."""
    copy: Any = dataclasses.replace(self, **fields)  # type: ignore[type-var]
    return copy
