"""Signatures of the factories, and what `init` makes."""

import inspect

import jax
import jax.numpy as jnp
import pytest

import revmom

ALL = {
  "sgd": lambda: revmom.sgd(0.1, 0.9),
  "adam": lambda: revmom.adam(0.1),
  "adamw": lambda: revmom.adamw(0.1),
  "rmsprop": lambda: revmom.rmsprop(0.1),
  "adagrad": lambda: revmom.adagrad(0.1),
  "signum": lambda: revmom.signum(0.1),
  "muon": lambda: revmom.muon(0.1),
  "averaged": lambda: revmom.averaged(revmom.sgd(0.1, 0.9), 0.9),
}


@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
def test_a_state_may_be_donated(make):
  optimizer = make()
  state = optimizer.init({"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, 2)
  step = lambda state: optimizer.forward(state, lambda p: p)
  after = jax.jit(step, donate_argnums=0)(state)
  assert int(after.count) == 1


def test_muon_with_an_empty_array():
  optimizer = revmom.muon(0.1)
  start = optimizer.init({"w": jnp.zeros((0, 4)), "b": jnp.ones(3)}, 2)
  end = optimizer.forward(start, lambda p: p)
  assert optimizer.params(end)["w"].shape == (0, 4)


def test_an_average_of_an_average_is_refused():
  once = revmom.averaged(revmom.sgd(0.1, 0.9), 0.9)
  with pytest.raises(ValueError, match="average it once"):
    revmom.averaged(once, 0.9)
  with pytest.raises(ValueError, match="average it once"):
    revmom.averaged(revmom.averaged(revmom.muon(0.1), 0.9), 0.9)


@pytest.mark.parametrize("name", [name for name in ALL if name != "averaged"])
def test_keywords_are_explicit(name):
  kinds = inspect.signature(getattr(revmom, name)).parameters.values()
  assert all(kind.kind is not kind.VAR_KEYWORD for kind in kinds)
