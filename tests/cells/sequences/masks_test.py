"""Masks: what they are on average, that steps differ, and their adjoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from revmom.cells.sequences import masks

STATES = (jnp.zeros((3, 40)), jnp.zeros((3, 50)))
RATES = masks.Rates((0.1, 0.4), 0.25)
KEY = jax.random.key(5)


def draw(key=KEY, lengths=None, steps=200, rates=RATES):
  return masks.draw(rates, key, lengths, jnp.arange(steps), STATES)


def test_rates_are_kept_on_average():
  drawn = draw()
  for held, rate, state in zip(drawn.held, RATES.zoneout, STATES, strict=True):
    assert held.shape == (200, *state.shape) and held.dtype == state.dtype
    assert set(np.unique(held)) == {0, 1}
    # Five standard deviations of so many draws.
    slack = 5 * (rate * (1 - rate) / held.size) ** 0.5
    assert abs(float(jnp.mean(held)) - rate) < slack
  assert drawn.kept.shape == (200, 3, 50)
  np.testing.assert_allclose(np.unique(drawn.kept), [0, 4 / 3], rtol=1e-6)
  assert abs(float(jnp.mean(drawn.kept)) - 1) < 0.02


def test_every_step_and_every_array_has_its_own_mask():
  drawn = draw(rates=masks.Rates((0.5, 0.5), 0.5))
  wide = [np.asarray(m)[:, :, :40] for m in (*drawn.held, drawn.kept > 0)]
  flat = [m[t].astype(int) for m in wide for t in range(10)]
  for number, one in enumerate(flat):
    for other in flat[:number]:
      # Independent masks of 120 elements agree in 60, give or take 5.5.
      assert 30 < np.sum(one == other) < 90


@pytest.mark.slow
def test_a_block_of_steps_draws_what_the_whole_does():
  whole = draw(steps=9)
  part = masks.draw(RATES, KEY, None, jnp.arange(4, 7), STATES)
  jax.tree.map(np.testing.assert_array_equal, part.held[0], whole.held[0][4:7])
  np.testing.assert_array_equal(part.kept, whole.kept[4:7])


def test_another_key_gives_other_masks():
  other = draw(jax.random.key(6))
  assert bool(jnp.any(other.held[0] != draw().held[0]))
  assert bool(jnp.any(other.kept != draw().kept))


def test_without_a_key_zoneout_is_its_mean_and_dropout_off():
  drawn = draw(None)
  for held, rate in zip(drawn.held, RATES.zoneout, strict=True):
    np.testing.assert_array_equal(held, np.full(held.shape, np.float32(rate)))
  assert drawn.kept is None


def test_nothing_is_drawn_where_nothing_is_asked_for():
  assert draw(rates=masks.Rates((0.0, 0.0), 0.0)) == (None, None, None)


def test_valid_is_within_the_sequence():
  valid = draw(lengths=jnp.array([0, 2, 4]), steps=4).valid
  assert valid.shape == (4, 3, 1)
  expected = [[t < n for n in (0, 2, 4)] for t in range(4)]
  np.testing.assert_array_equal(valid[:, :, 0], expected)


@pytest.mark.parametrize("zoneout", [True, False])
@pytest.mark.parametrize("lengths", [True, False])
def test_hold_and_its_adjoint(x64, zoneout, lengths):
  rng = np.random.default_rng(0)
  pair = lambda: (rng.normal(size=(3, 4)), rng.normal(size=(3, 5)))
  old, new, bars = pair(), pair(), pair()
  held = tuple((rng.random(a.shape) < 0.5).astype(float) for a in old)
  valid = np.array([[True], [False], [True]])
  of_step = masks.Masks(
    jnp.asarray(valid) if lengths else None,
    jax.tree.map(jnp.asarray, held) if zoneout else None,
    None,
  )
  stays = [(m == 1) & zoneout | ~valid & lengths for m in held]
  result = masks.hold(of_step, old, new)
  of_old, of_new = masks.hold_adjoint(of_step, jax.tree.map(jnp.asarray, bars))
  for n, stay in enumerate(stays):
    np.testing.assert_array_equal(result[n], np.where(stay, old[n], new[n]))
    np.testing.assert_array_equal(of_old[n], np.where(stay, bars[n], 0))
    np.testing.assert_array_equal(of_new[n], np.where(stay, 0, bars[n]))


def test_rates():
  assert masks.rates(0.5, 0, 2) == ((0.5, 0.5), 0.0)
  assert masks.rates((0, 0.25), 0.5, 2) == ((0.0, 0.25), 0.5)
  with pytest.raises(ValueError, match="has 1 rates, .* 2 arrays: give one"):
    masks.rates((0.5,), 0.0, 2)
  with pytest.raises(ValueError, match=r"zoneout is 1.0, .* in \[0, 1\)"):
    masks.rates((0.5, 1), 0.0, 2)
  with pytest.raises(ValueError, match=r"dropout is -1.0, .* in \[0, 1\)"):
    masks.rates(0.0, -1, 2)
