"""Flows learn densities: RealNVP, Glow and NICE on points and on images.

  python scripts/density.py --workdir=out/density
  python scripts/density.py --data=digits --model=glow --workdir=out/digits
  python scripts/density.py --data=mnist --data_dir=DIR --workdir=out/mnist

Half a minute on 2 CPU cores for points.  Expect 2.427 nats on test points of
two_moons, where the true density has 2.397: KL(p || q) = 0.030 (initial weights
that differ in the last bit gave 0.016), and an integral of 1.0000.  The digits
take a minute with RealNVP: 2.16 bits per dimension of their 17 grey levels.
MNIST needs patience: after 150 steps on 8334 of its images 2.67 bits per
dimension of 256 levels, while 1.06 is published.

Of points the density itself is known, so what the flow lacks is measured:
KL(p || q) = E_p[log p - log q] over test points.  The integral of q over the
plane, which should be 1, checks the log-determinants from outside.  Images are
dequantised (Theis, van den Oord & Bethge 2016), and the bits per dimension of
test images stand beside published ones where there are any; those are of larger
models, trained on all of MNIST.

Last it inverts: max |x - f^-1(f(x))| over test data, max |z - f(f^-1(z))| over
noise, and how far the log-determinants of both directions are from cancelling.

With --workdir it writes result.json, metrics.csv (loss by step), loss.png,
density.png or samples.png, inversion.png and checkpoints.  Running it again
there goes on from the last one and ends in the same weights as a run that was
never interrupted.
"""

import dataclasses
import functools
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import density_figures
import density_models as models
import experiment
import jax
import jax.numpy as jnp
import numpy as np
import optax
import training_loop
from absl import flags
from density_models import Data, Size
from training_loop import Rows, Training
from two_dimensional import TOYS

from revmom.models import Flow, quantise

_DATA = flags.DEFINE_enum(
  "data",
  "two_moons",
  models.NAMES,
  "Points of the plane, or images; all but digits in --data_dir.",
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of idx files.")
_MODEL = flags.DEFINE_enum("model", "real_nvp", models.MODELS, "The flow.")
_DEPTH = flags.DEFINE_integer(
  "depth",
  None,
  "Couplings, by default 8 (NICE of images: 4), or Glow's steps at each of two "
  "scales, by default 4.  RealNVP of images has 7 couplings at each scale.",
  lower_bound=1,
)
_HIDDEN = flags.DEFINE_integer(
  "hidden",
  None,
  "Units or channels in each coupling's network; by default 64 for points, 32 "
  "for images, 256 for NICE's vectors.",
  lower_bound=1,
)
_STEPS = flags.DEFINE_integer(
  "steps",
  None,
  "Adam steps; by default 2000 for points, 600 for images.",
  lower_bound=1,
)
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size",
  None,
  "Drawn with replacement; by default 256 points or 64 images.",
  lower_bound=1,
)
_LEARNING_RATE = flags.DEFINE_float(
  "learning_rate",
  2e-3,
  "At first; it decays to zero along a cosine.",
  lower_bound=0.0,
)
_SEED = flags.DEFINE_integer("seed", 0, "Of weights, points, noise, batches.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where results go.")

_CHUNK = 500  # points or images that are evaluated at once
_FIRST_BATCH = 512  # by which actnorm starts
_VALIDATED = 1000  # of the points or images for validation
_SCALES = 2
_SHOWN = 64  # samples of images
_LOCAL = ("data_dir",)  # may differ between a run and its resumption


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment; see the flags of the same names.  None is the default."""

  data: str = "two_moons"
  data_dir: str | None = None
  model: str = "real_nvp"
  depth: int | None = None
  hidden: int | None = None
  steps: int | None = None
  batch_size: int | None = None
  learning_rate: float = 2e-3
  seed: int = 0

  @property
  def points(self) -> bool:
    """Whether the data are points of the plane."""
    return self.data in TOYS

  def with_defaults(self) -> "Config":
    """The same experiment with nothing left open.

    Raises:
      ValueError: --depth does not go with the model.
    """
    images_of_real_nvp = self.model == "real_nvp" and not self.points
    if images_of_real_nvp and self.depth is not None:
      raise ValueError(
        f"--depth={self.depth}: RealNVP of images has 7 couplings at each "
        "scale. Leave it out, or take --model=glow."
      )
    depth, hidden = 8, 64
    if not self.points:
      depth = 7 if self.model == "real_nvp" else 4
      hidden = 256 if self.model == "nice" else 32
    return dataclasses.replace(
      self,
      depth=self.depth or depth,
      hidden=self.hidden or hidden,
      steps=self.steps or (2000 if self.points else 600),
      batch_size=self.batch_size or (256 if self.points else 64),
    )


def build(config: Config) -> Flow:
  """The flow of a config without open values."""
  size = Size(config.depth or 0, config.hidden or 0, _SCALES)
  of = models.points_flow if config.points else models.images_flow
  return of(config.model, size)


def optimizer_of(config: Config) -> optax.GradientTransformation:
  """Adam with a decaying rate."""
  return optax.adam(
    optax.cosine_decay_schedule(config.learning_rate, config.steps)
  )


def key_of(config: Config, purpose: int) -> jax.Array:
  """A random key for one purpose of an experiment."""
  return jax.random.fold_in(jax.random.key(config.seed), purpose)


def start(flow: Flow, data: Data, config: Config) -> Training:
  """Initial weights, and Adam's memory."""
  first = data.floats(key_of(config, 0), data.train[:_FIRST_BATCH])
  params = jax.jit(flow.init)(key_of(config, 1), first)
  return Training(params, optimizer_of(config).init(params))


def training_step(flow: Flow, data: Data, config: Config) -> Callable:
  """(training, number) -> the next one, and the mean loss."""
  examples = jnp.asarray(data.train)
  optimizer = optimizer_of(config)

  def loss_fn(params, batch, key):
    x = data.floats(key, batch)
    return data.losses(flow.log_prob(params, x)).mean()

  @functools.partial(jax.jit, donate_argnums=0)
  def step(training, number):
    key = jax.random.fold_in(key_of(config, 2), number)
    batch_key, noise_key = jax.random.split(key)
    shape = (config.batch_size or 0,)
    indices = jax.random.randint(batch_key, shape, 0, len(examples))
    loss, gradients = jax.value_and_grad(loss_fn)(
      training.params, examples[indices], noise_key
    )
    updates, state = optimizer.update(gradients, training.optimizer)
    return Training(optax.apply_updates(training.params, updates), state), loss

  return step


def chunks(array: np.ndarray) -> tuple[list[np.ndarray], int]:
  """Parts of one shape, the last of which ends in repetitions; their size."""
  size = min(_CHUNK, len(array))
  missing = -len(array) % size
  padded = np.concatenate([array, array[:missing]])
  return np.split(padded, len(padded) // size), size


def evaluation(flow: Flow, data: Data, config: Config) -> Callable:
  """(params, examples) -> the loss of each, always with the same noise."""
  key = key_of(config, 3)

  @jax.jit
  def losses(params, batch, number):
    x = data.floats(jax.random.fold_in(key, number), batch)
    return data.losses(flow.log_prob(params, x))

  def all_of(params, examples):
    parts, _ = chunks(examples)
    found = [
      losses(params, part, np.int32(number))
      for number, part in enumerate(parts)
    ]
    return np.concatenate(found)[: len(examples)].astype(np.float64)

  return all_of


def train(
  flow: Flow,
  data: Data,
  config: Config,
  training: Training,
  rows: Rows,
  save: Callable[[Training, Rows], None],
) -> tuple[Training, Rows]:
  """Goes on to the last step; saves now and then.

  Raises:
    FloatingPointError: a loss was not finite.
  """
  step = training_step(flow, data, config)
  evaluate = evaluation(flow, data, config)

  def validate(params):
    loss = float(evaluate(params, data.validation[:_VALIDATED]).mean())
    return {"validation_loss": loss}, f"validation {loss:.3f} {data.unit}"

  return training_loop.train(
    step, training, rows, config.steps or 0, validate, save
  )


# What a trained flow is measured by.


class Inversion(NamedTuple):
  """Test data through the flow and back, and noise back and forth."""

  x: np.ndarray
  back: np.ndarray  # f^-1(f(x))
  noise_errors: np.ndarray  # max |z - f(f^-1(z))| of each sample; may be NaN
  log_det_error: float  # max |log|det f'| + log|det f^-1'||

  @property
  def errors(self) -> np.ndarray:
    """Of each element of x."""
    return np.abs(self.x - self.back)


def invert(flow: Flow, data: Data, config: Config, params: Any) -> Inversion:
  """Round trips of one chunk of the test data, and of as much noise.

  Raises:
    RuntimeError: a round trip was not finite.
  """
  x = data.floats(key_of(config, 4), data.test[:_CHUNK])

  @jax.jit
  def trips(params, x, key):
    z, forward = flow.forward_and_log_det(params, x)
    back, inverse = flow.inverse_and_log_det(params, z)
    noise = jax.tree.map(
      lambda leaf: flow.base.sample(key, leaf.shape, leaf.dtype), z
    )
    sampled, _ = flow.inverse_and_log_det(params, noise)
    again, _ = flow.forward_and_log_det(params, sampled)
    apart = [
      jnp.abs(a - b).reshape(len(x), -1).max(1)
      for a, b in zip(
        jax.tree.leaves(noise), jax.tree.leaves(again), strict=True
      )
    ]
    noise_errors = functools.reduce(jnp.maximum, apart)
    return back, noise_errors, jnp.max(jnp.abs(forward + inverse))

  back, noise_errors, log_det_error = trips(params, x, key_of(config, 5))
  wrong = int((~np.isfinite(back)).sum())
  if wrong:
    raise RuntimeError(
      f"{wrong} numbers of {back.size} are not finite after a round trip "
      "through the flow."
    )
  return Inversion(
    np.asarray(x),
    np.asarray(back),
    np.asarray(noise_errors),
    float(log_det_error),
  )


def samples(flow: Flow, data: Data, config: Config, params: Any) -> np.ndarray:
  """As many points as the test has, or some images, on the data's scale."""
  count = len(data.test) if config.points else _SHOWN
  draw = jax.jit(flow.sample, static_argnums=2)
  drawn = draw(key_of(config, 6), params, (count, *data.event))
  if data.levels is None:
    return np.asarray(drawn)
  return np.asarray(quantise(drawn, data.levels, jnp.int32))


def density_map(
  flow: Flow, data: Data, config: Config, params: Any
) -> density_figures.Map:
  """q and p on a grid around the test points."""
  grid = density_figures.grid_around(data.test)
  losses = evaluation(flow, data, config)(params, grid.points)
  log_p = np.concatenate(
    [TOYS[config.data].log_prob(part) for part in np.split(grid.points, 50)]
  )
  return density_figures.Map(grid, np.exp(-losses), np.exp(log_p))


def against_truth(
  config: Config, test: np.ndarray, losses: np.ndarray
) -> dict[str, float]:
  """How far the flow is from the density that points were drawn from."""
  log_p = np.concatenate(
    [
      TOYS[config.data].log_prob(part.astype(np.float64))
      for part in np.array_split(test, 20)
    ]
  )
  lacking = log_p + losses
  return {
    "true_entropy": float(-log_p.mean()),
    "kl": float(lacking.mean()),
    "kl_stderr": standard_error(lacking),
  }


def standard_error(values: np.ndarray) -> float:
  """Of a mean over independent examples."""
  return float(values.std(ddof=1) / len(values) ** 0.5)


def write(
  workdir: pathlib.Path,
  rows: list[dict[str, float]],
  drawn: dict[str, Any],
  result: dict[str, Any],
) -> None:
  """All files but the checkpoints."""
  experiment.write_csv(workdir / "metrics.csv", rows)
  for name, figure in drawn.items():
    figure.savefig(workdir / f"{name}.png", dpi=150)
  experiment.write_json(workdir / "result.json", result)


def run(config: Config, workdir: str | None = None) -> dict[str, Any]:
  """The experiment: train, evaluate, invert, sample, write.

  Raises:
    ValueError: the data, the model or the workdir don't go with the flags.
    FloatingPointError: a loss was not finite.
    RuntimeError: a round trip was not finite.
  """
  begin = time.perf_counter()
  config = config.with_defaults()
  data = models.load(config.data, config.data_dir, config.model, config.seed)
  flow = build(config)
  training = start(flow, data, config)
  rows: list[dict[str, float]] = []
  path = experiment.folder(workdir)
  save = lambda training, rows: None
  if path is not None:
    checkpoints = experiment.Checkpoints(path, config, _LOCAL)
    training, rows = training_loop.resume(checkpoints, training)

    def save(training: Training, rows: Rows) -> None:
      checkpoints.save(len(rows), training, rows)

  done_before = len(rows)
  training, rows = train(flow, data, config, training, rows, save)
  if path is not None:
    checkpoints.close()
  params = training.params
  losses = evaluation(flow, data, config)(params, data.test)
  inversion = invert(flow, data, config, params)
  kept = np.isfinite(inversion.noise_errors)
  drawn_samples = samples(flow, data, config, params)
  result = {
    "data": config.data,
    "model": config.model,
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    "steps": config.steps,
    "resumed_from": done_before,
    "unit": data.unit,
    "test_loss": float(losses.mean()),
    "test_loss_stderr": standard_error(losses),
    "validation_loss": rows[-1]["validation_loss"],
    "final_train_loss": statistics.mean(row["loss"] for row in rows[-20:]),
    "inversion_error": float(inversion.errors.max()),
    "noise_inversion_error": float(
      inversion.noise_errors.max(where=kept, initial=0)
    ),
    "noise_lost": int((~kept).sum()),
    "log_det_error": inversion.log_det_error,
    "published_test_loss": models.PUBLISHED.get((config.data, config.model)),
    "seconds_per_step": statistics.median(row["seconds"] for row in rows),
  }
  if config.points:
    result |= against_truth(config, data.test, losses)
    on_grid = density_map(flow, data, config, params)
    result["integral"] = on_grid.integral
  result["seconds"] = time.perf_counter() - begin
  if path is not None:
    drawn = {"loss": density_figures.losses(rows, result)}
    if config.points:
      drawn["density"] = density_figures.density(
        on_grid, drawn_samples, data.test, result
      )
      drawn["inversion"] = density_figures.points_inversion(inversion, result)
    else:
      drawn["samples"] = density_figures.samples(drawn_samples, data, result)
      drawn["inversion"] = density_figures.images_inversion(
        inversion, data, result
      )
    write(path, rows, drawn, result)
  return result


def report(result: dict[str, Any]) -> str:
  """The result for people."""
  r = result
  resumed = r["resumed_from"]
  origin = f" ({resumed} of them done before)" if resumed else ""
  lines = [
    f"model      {r['model']}, {r['parameters']:,} parameters, {r['steps']} "
    f"Adam steps{origin}",
    f"test       {r['test_loss']:.4f} +- {r['test_loss_stderr']:.4f} "
    f"{r['unit']}",
  ]
  if "kl" in r:
    lines += [
      f"truth      {r['true_entropy']:.4f} nats on the same points, so KL(p || "
      f"q) = {r['kl']:.4f} +- {r['kl_stderr']:.4f}",
      f"integral   {r['integral']:.5f} of q over the plane",
    ]
  if r["published_test_loss"] is not None:
    lines.append(
      f"published  {r['published_test_loss']:.2f} bits/dim, a larger model "
      "trained on 60 000 images"
    )
  lost = ""
  if r["noise_lost"]:
    lost = (
      f" ({r['noise_lost']} of {_CHUNK} samples are beyond what a sigmoid "
      "keeps in float32)"
    )
  lines += [
    f"inversion  max |x - f^-1(f(x))| = {r['inversion_error']:.1e}, max |z - "
    f"f(f^-1(z))| = {r['noise_inversion_error']:.1e}{lost}",
    f"log|det|   cancels to {r['log_det_error']:.1e} between both directions",
    f"time       {r['seconds']:.1f} s, {1e3 * r['seconds_per_step']:.1f} ms a "
    "step",
  ]
  return "\n".join(lines)


if __name__ == "__main__":
  experiment.start(
    lambda: report(run(experiment.settings(Config), _WORKDIR.value))
  )
