"""Runs scripts/doctor.py as a user would."""

import json

import numpy as np
import pytest


@pytest.mark.slow
def test_this_machine_reverses_and_the_next_visit_agrees(script, tmp_path):
  script = script.at(tmp_path)
  assert "first visit" in script.run("--steps=3").stdout
  result = script.result()
  verdicts = {k: v for k, v in result.items() if k.startswith("verdict_")}
  assert result["ok"] and len(verdicts) == 10
  assert set(verdicts.values()) == {"OK"}
  for model in ("mlp", "conv", "lstm", "max_pool", "embedding"):
    assert f"verdict_{model}_bfloat16" in verdicts
  # A change is named: here, of the record of the first visit.
  result["fingerprint_threads"] += 1
  result["digest_mlp_float32"] = "other"
  (tmp_path / "result.json").write_text(json.dumps(result))
  second = script.run("--steps=3")
  assert "fingerprint_threads" in second.stdout
  assert "other bits in mlp_float32" in second.stdout


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  ("flag", "message"),
  [("--step=3", "Did you mean: step"), ("--steps=0", "steps")],
)
def test_a_wrong_flag_is_named(script, flag, message):
  assert message in script.fails(flag)


@pytest.fixture(scope="module")
def environment(load):
  return load("diagnosis.environment")


@pytest.fixture(scope="module")
def self_test(load):
  return load("diagnosis.self_test")


def test_gpu_flags_are_understood(environment):
  ok = lambda flags: [finding.ok for finding in environment.gpu(flags)]
  assert ok("") == [False, False]
  assert ok("--xla_gpu_deterministic_ops=true") == [True, True]
  assert ok("--xla_gpu_deterministic_ops") == [True, True]
  assert ok("--xla_gpu_autotune_level=0") == [False, True]
  both = "--xla_gpu_exclude_nondeterministic_ops=true"
  assert ok(f"{both} --xla_gpu_autotune_level=0") == [True, True]
  last_wins = "--xla_gpu_deterministic_ops=true "
  last_wins += "--xla_gpu_deterministic_ops=false"
  assert ok(last_wins) == [False, False]


@pytest.mark.parametrize(
  ("jaxlib", "backend", "flags", "expected"),
  [
    ("0.10.1", "cpu", "", True),
    ("0.10.2", "cpu", "", False),
    ("0.10.2", "cpu", "--xla_cpu_experimental_ynn_fusion_type=", True),
    ("0.11.0", "cpu", "", False),
    ("0.11.1", "cpu", "", True),
    ("0.11.1", "gpu", "", False),
    ("0.10.1", "gpu", "", False),
    ("0.12.0", "gpu", "", True),
  ],
)
def test_broken_releases_are_known(
  environment, jaxlib, backend, flags, expected
):
  here = environment.revmom.fingerprint()._replace(
    jax=jaxlib, jaxlib=jaxlib, backend=backend, xla_flags=flags
  )
  found = {f.name: f for f in environment.versions(here)}
  assert found["jaxlib"].ok is expected
  assert bool(found["jaxlib"].remedy) is not expected
  assert found["jax#39103 reproduced"].ok


@pytest.mark.slow
def test_a_divergence_is_not_ok(self_test):
  """A gradient that depends on the call can't be recomputed."""
  import jax
  import jax.numpy as jnp

  calls = iter(range(10**6))

  def noise(_):
    return np.float32(next(calls))

  def loss_fn(params, batch):
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    fresh = jax.pure_callback(noise, shape, batch[1][0])
    return jnp.sum(params["x"]) * 1e-4 * fresh

  case = self_test.Case({"x": jnp.ones(2)}, loss_fn, (jnp.ones(4), jnp.ones(4)))
  outcome = self_test.reverse(case, "float32", 20, 0)
  assert outcome.verdict == "DIVERGED" and not outcome.ok


def test_a_loss_that_is_not_finite_stops(self_test):
  import jax.numpy as jnp

  loss_fn = lambda params, batch: jnp.sum(params["x"]) / 0.0
  case = self_test.Case({"x": jnp.ones(2)}, loss_fn, (jnp.ones(4), jnp.ones(4)))
  with pytest.raises(FloatingPointError, match="not finite"):
    self_test.reverse(case, "float32", 5, 0)
