"""Runs scripts/tune.py as a user would, on problems of their own."""

import jax
import numpy as np
import optax
import pytest

INIT = """
import jax, jax.numpy as jnp, optax, revmom

def init(key):
  return {"w": jax.random.normal(key, (3,)), "b": jnp.zeros(())}
"""
LOSS = """
def loss_fn(params, batch):
  x, y = batch
  return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)
"""
BATCHES = """
def batches(key, step):
  x = jax.random.normal(jax.random.fold_in(key, step), (8, 3))
  return x, x @ jnp.array([1.0, -2.0, 0.5]) + 0.3
"""
VALIDATION = """
validation_batch = batches(jax.random.key(9), 0)
"""
REGRESSION = INIT + LOSS + BATCHES + VALIDATION

# Without randomness, so that NumPy can follow it.
CURVATURES = 0.5, 1.0, 3.0
START, TARGET = (1.0, -1.5, 0.5), (0.3, 0.2, -0.1)
BOWL = f"""
import jax.numpy as jnp
import revmom

def init(key):
  return jnp.array({START})

def batches(key, step):
  return jnp.zeros(())

def loss_fn(x, batch):
  return 0.5 * jnp.sum(jnp.array({CURVATURES}) * x**2) + batch

def validation_loss(x):
  return jnp.sum((x - jnp.array({TARGET})) ** 2)

def optimizer():
  return revmom.sgd(0.3, 0.9)
"""


def problem(folder, text, name="mine.py"):
  path = folder / name
  path.write_text(text)
  return f"--problem={path}"


def values_of(workdir):
  with np.load(workdir / "hyperparameters.npz") as file:
    return dict(file)


def bowl_loss(log_rate, logit_momentum, steps):
  """The validation loss of BOWL after training in float64."""
  rate, momentum = np.exp(log_rate), 1 / (1 + np.exp(-logit_momentum))
  x, velocity = np.array(START), np.zeros(3)
  for _ in range(steps):
    velocity = momentum * velocity - rate * np.array(CURVATURES) * x
    x = x + velocity
  return np.sum((x - np.array(TARGET)) ** 2)


@pytest.mark.slow
def test_follows_the_hypergradient(script, tmp_path):
  script = script.at(tmp_path)
  flags = "--steps=10", "--meta_steps=3", "--meta_learning_rate=0.7"
  done = script.run(problem(tmp_path, BOWL), *flags)
  assert done.stderr == ""  # no progress bar: it is not a terminal
  rows = script.rows()
  start = np.array([np.log(0.3), np.log(0.9 / 0.1)])
  assert float(rows[0]["validation_loss"]) == pytest.approx(
    bowl_loss(*start, 10), rel=1e-5
  )
  gradient = [
    (bowl_loss(*(start + e), 10) - bowl_loss(*(start - e), 10)) / 2e-5
    for e in 1e-5 * np.eye(2)
  ]
  norm = float(rows[0]["hypergradient_norm"])
  assert norm == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
  # Adam's first step goes as far as its learning rate, downhill.
  after = start - 0.7 * np.sign(gradient)
  assert float(rows[1]["learning_rate"]) == pytest.approx(
    np.exp(after[0]), rel=1e-4
  )
  assert float(rows[1]["momentum"]) == pytest.approx(
    1 / (1 + np.exp(-after[1])), rel=1e-4
  )
  # Momenta that the optimizer itself has no room for are given some.
  result = script.result()
  assert result["momentum_after"] < 0.7
  assert result["validation_loss_after"] < result["validation_loss_before"] / 2
  assert result["validation_loss_after"] == pytest.approx(
    bowl_loss(
      np.log(result["learning_rate_after"]),
      np.log(result["momentum_after"] / (1 - result["momentum_after"])),
      10,
    ),
    rel=1e-4,
  )
  assert script.figures() >= {"validation_loss", "learning_rate", "momentum"}


REGULARISED = BOWL.replace("x, batch)", "x, batch, l2=0.05)").replace(
  "+ batch", "+ batch + l2 * jnp.sum(x**2)"
)
PARTITIONED = REGULARISED.replace(
  "return revmom.sgd(0.3, 0.9)",
  """
  warm_up = jnp.minimum(jnp.arange(10) / 5, 1) * 0.3
  parts = {"all": revmom.sgd(warm_up, 0.9), "none": revmom.adam(0.1)}
  return revmom.partition(parts, "all")
""",
)


def test_the_loss_a_partition_and_a_warm_up(load, tmp_path):
  """The first hypergradient, against differences of losses in float64."""
  values, training = load("tuning.values"), load("tuning.runs")
  (tmp_path / "mine.py").write_text(PARTITIONED)
  posed = load("tuning.problem_file").pose(tmp_path / "mine.py")
  names = "l2", "all.learning_rate"
  config = values.Config(tune=names, per_step=True, steps=10)
  tuned = values.start(posed, config)
  step = training.meta_iteration(posed, config)
  start = load("shared.meta_training").start(tuned, optax.adam(0.1))
  with jax.numpy_dtype_promotion("standard"):  # for optax
    after, _, figures = step(tuned, start.meta_state, np.int32(0))

  def loss(logs):
    x, velocity = np.array(START), np.zeros(3)
    for l2, rate in np.exp(logs.T):
      gradient = (np.array(CURVATURES) + 2 * l2) * x
      velocity = 0.9 * velocity - rate * gradient
      x = x + velocity
    return np.sum((x - np.array(TARGET)) ** 2)

  with np.errstate(divide="ignore"):
    logs = np.log([[0.05] * 10, np.minimum(np.arange(10) / 5, 1) * 0.3])
  unit = 1e-5 * np.eye(20).reshape(20, 2, 10)
  gradient = np.array([loss(logs + e) - loss(logs - e) for e in unit]) / 2e-5
  assert figures["validation_loss"] == pytest.approx(loss(logs), rel=1e-4)
  norm = np.linalg.norm(gradient)
  assert figures["hypergradient_norm"] == pytest.approx(norm, rel=1e-3)
  moved = np.concatenate([after[name] - tuned[name] for name in names])
  signs = -np.sign(gradient.reshape(2, 10))
  assert signs[1, 0] == 0 and np.isneginf(after[names[1]][0, 0])
  moved[1, 0] = 0  # of a step that is not taken, before and after
  np.testing.assert_array_equal(np.sign(moved[1]), signs[1])


@pytest.mark.parametrize(
  ("text", "name", "message"),
  [
    (PARTITIONED, "learning_rate", "one of each part, so name the part, too"),
    (REGULARISED.replace("l2", "momentum"), "momentum", "rename the argument"),
    (
      REGULARISED.replace("def validation_loss(x)", "def unused(x)")
      + "validation_batch = 0.0",
      "l2",
      "define validation_loss.params. without it",
    ),
    (BOWL, "l2", "l2 is not one.*as in loss_fn.params, batch, l2=1e-4"),
    (BOWL.replace("0.3, 0.9", "0.0, 0.9"), "learning_rate", "starts at 0;"),
  ],
)
def test_what_can_not_be_tuned(load, tmp_path, text, name, message):
  values = load("tuning.values")
  (tmp_path / "mine.py").write_text(text)
  posed = load("tuning.problem_file").pose(tmp_path / "mine.py")
  with pytest.raises(ValueError, match=message):
    values.start(posed, values.Config(tune=(name,)))


@pytest.mark.slow
def test_values_for_each_step_and_array(script, tmp_path):
  schedule = """
def optimizer():
  schedule = optax.linear_schedule(0.02, 0.01, 10)
  return revmom.sgd(schedule, 0.9, weight_decay=0.01)
"""
  script = script.at(tmp_path)
  script.run(
    problem(tmp_path, REGRESSION + schedule),
    "--steps=10",
    "--meta_steps=2",
    "--tune=learning_rate,weight_decay",
    "--per_step",
    "--per_array",
    "--nofresh_seeds",
  )
  values = values_of(tmp_path)
  assert set(values) == {
    f"{name}['{array}']"
    for name in ("learning_rate", "weight_decay")
    for array in "bw"
  }
  assert {array.shape for array in values.values()} == {(10,)}
  rates = values["learning_rate['w']"]
  start = np.linspace(0.02, 0.011, 10)
  # Two steps of Adam, 0.1 each at most, on logarithms.
  distance = np.abs(np.log(rates / start))
  assert np.all(distance > 0.05) and np.all(distance < 0.21)
  assert len(np.unique(values["weight_decay['b']"])) > 1
  # The same run each time: the steps lower its loss.
  losses = [float(row["validation_loss"]) for row in script.rows()]
  assert losses[1] < losses[0]
  assert script.result()["tuned_values"] == 40


@pytest.mark.slow
def test_one_step_of_one_array(script, tmp_path):
  one = INIT.replace(', "b": jnp.zeros(())', "") + LOSS.replace(
    ' + params["b"]', ""
  )
  script = script.at(tmp_path)
  flags = "--steps=1", "--meta_steps=1", "--tune=learning_rate", "--per_array"
  script.run(problem(tmp_path, one + BATCHES + VALIDATION), *flags)
  (rate,) = values_of(tmp_path).values()
  assert rate.shape == ()
  assert float(script.rows()[0]["learning_rate['w']"]) == pytest.approx(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", ["--fresh_seeds", "--nofresh_seeds"])
def test_two_halves_end_in_the_bits_of_one_run(script, tmp_path, seeds):
  path = problem(tmp_path, REGRESSION)
  flags = path, "--steps=10", "--meta_learning_rate=0.3", seeds
  whole, halves = (script.at(tmp_path / name) for name in ("whole", "halves"))
  whole.run(*flags, "--meta_steps=6")
  for meta_steps in (3, 6):
    halves.run(*flags, f"--meta_steps={meta_steps}")
  assert halves.result()["resumed_from"] == 3
  assert halves.bits() == whole.bits()
  values = values_of(halves.workdir)
  for name, value in values_of(whole.workdir).items():
    np.testing.assert_array_equal(value, values[name], strict=True)


@pytest.mark.slow
def test_results_of_another_run_are_left_alone(script, tmp_path):
  script = script.at(tmp_path)
  flags = problem(tmp_path, REGRESSION), "--steps=10"
  script.run(*flags, "--meta_steps=2")
  for more, message in [
    (("--meta_steps=2", "--per_step"), "--per_step=False there"),
    (("--meta_steps=1",), "2 meta iterations, more than --meta_steps=1"),
  ]:
    assert message in script.fails(*flags, *more)
  problem(tmp_path, REGRESSION + "\n# changed")
  assert "other data" in script.fails(*flags, "--meta_steps=3")


@pytest.mark.slow
def test_a_killed_run_loses_at_most_one_meta_iteration(script, tmp_path):
  path = problem(tmp_path, REGRESSION)
  flags = path, "--steps=10", "--meta_steps=40"
  whole, broken = (script.at(tmp_path / name) for name in ("whole", "broken"))
  whole.run(*flags)

  metrics = broken.workdir / "metrics.csv"
  broken.kill_when(lambda: metrics.exists() and len(broken.rows()) >= 3, *flags)
  known = len(broken.rows())
  broken.run(*flags)
  # The table may lag by the row of a checkpoint just written.
  assert known <= broken.result()["resumed_from"] <= known + 1
  assert broken.bits() == whole.bits()


@pytest.mark.slow
def test_the_example_gets_better(script, tmp_path):
  script = script.at(tmp_path)
  script.run("--meta_steps=20")
  result = script.result()
  for loss in ("validation_loss", "test_loss"):
    assert result[f"{loss}_after"] < result[f"{loss}_before"] / 3
  assert result["learning_rate_after"] > 2 * result["learning_rate_before"]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("text", "rate", "moment", "reason"),
  [
    (
      "def optimizer(): return revmom.sgd(1e6, 0.9)",
      0.1,
      "evaluation 0 of 10 is not finite, at learning_rate 1e+06",
      "left the grid",
    ),
    (
      "def validation_loss(params): return jnp.sqrt(0 * params['b'])",
      0.1,
      "meta iteration 0 has hypergradient_norm=nan, at learning_rate 0.01",
      "root or logarithm at zero",
    ),
    ("", 30, "meta iteration 1 has", "lower --meta_learning_rate"),
  ],
  ids=["start", "hypergradient", "later"],
)
def test_what_is_not_finite_stops_the_run(
  script, tmp_path, text, rate, moment, reason
):
  error = script.at(tmp_path).stops(
    problem(tmp_path, REGRESSION + text),
    "--steps=10",
    "--meta_steps=3",
    f"--meta_learning_rate={rate}",
  )
  assert f"error: {moment}" in error
  assert reason in error


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--meta_step=3"], "Did you mean: meta_steps"),
    (["--steps=0"], "steps"),
    (["--tune=lr"], "are learning_rate, momentum; lr is not one"),
    (["--tune=weight_decay"], "weight_decay is not in use"),
    (["--tune="], "name each hyperparameter once"),
    (["--problem=absent.py"], "absent.py is not a file"),
    (["example"], "flags begin --"),
  ],
)
def test_a_wrong_flag_is_named(script, flags, message):
  assert message in script.fails(*flags)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
  ("text", "message"),
  [
    (INIT, "does not define batches(key, step) -> batch; loss_fn(params"),
    (INIT + LOSS + BATCHES, "does not define validation_loss(params)"),
    (REGRESSION + "loss_fn = 3", "loss_fn of {path} is not a function"),
    ("import jax\nimport nothing_at_all", "ModuleNotFoundError in line 2"),
    ("def init(key", "SyntaxError"),
    (
      REGRESSION + "def loss_fn(params): return 0.0",
      "loss_fn of {path} raised TypeError: loss_fn() takes 1",
    ),
    (
      REGRESSION + "def validation_loss(params): return params['w']",
      "must return one floating-point number",
    ),
    (
      REGRESSION + "def optimizer(): return optax.sgd(0.1)",
      "must return an optimizer of revmom",
    ),
    (
      REGRESSION + "def optimizer(): return revmom.sgd(0.1, 1.0)",
      "momentum starts at 1; tuning keeps it between 0 and 1",
    ),
    (
      REGRESSION
      + "def optimizer(): return revmom.sgd(lambda t: 0.1 / (1 + t), 0.9)",
      "varies with the step; give --per_step",
    ),
    (
      REGRESSION
      + "def optimizer(): return revmom.sgd({'w': 0.1, 'b': 0.2}, 0.9)",
      "varies with the parameter array; give --per_array",
    ),
  ],
)
def test_what_is_wrong_with_a_problem_is_one_line(
  script, tmp_path, text, message
):
  path = problem(tmp_path, text)
  error = script.fails(path)
  assert message.replace("{path}", path) in error
  assert error.startswith("error: ") and error.count("\n") == 1
