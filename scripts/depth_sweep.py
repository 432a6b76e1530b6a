"""How deep networks can be before they stop learning, and what makes them so.

  python scripts/depth_sweep.py --workdir=out/depth_sweep
  python scripts/depth_sweep.py --dataset=mnist --data_dir=DIR \
    --workdir=out/depth_mnist

Convolutional networks of 2 to 200 layers classify images of digits by linear
regression: plain ones, with a regression on every layer (deep supervision),
with residual layers normalised after the sum or inside the branch, with update
gates (UGCNN) and with Fixup initialisation.  Of each it measures the gradient
that reaches every layer at initialisation, and then trains it.

After that, plain fully connected tanh networks are trained at many depths and
gains sigma_w.  On the map of those that learned is the theory's line of 6 xi_c
layers, about as deep as a signal gets (Schoenholz, Gilmer, Ganguli &
Sohl-Dickstein 2017, figure 5).

Three minutes on 2 CPU cores.  Expect, at 200 layers, a gradient
that is 8e-13 times as large at the first layer as at the last in a plain
network, which learns nothing (9 % of validation images right).  Nor does deep
supervision (11 %), whose gradients reach every layer, or normalisation after
the sum (24 %), whose identity path alone passes on 2e-11.  83 % are right with
normalisation inside the branch, whose identity path passes on everything, 91 %
with update gates, if their biases are log L, and 92 % with Fixup.

Of plain tanh networks those learn that are no deeper than the theory says: the
deepest has 60 layers and sigma_w^2 = 2, near the edge of chaos at 1.761, and
all of them have at most 6 xi_c.  An identity path that is not what it must be
is an error.

With --workdir it writes result.json, metrics.csv (a row for each network, depth
and step), gradients.png, training.png, trainable.png and checkpoints.  Running
it again there goes on with the first network or depth that was not finished.
"""

import pathlib
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from depth import networks, plots
from depth.runs import SIGMA_B, Config, map_runs, network_runs
from revmom.analysis import edge_of_chaos
from shared import image_data, output
from shared.in_turn import Results, in_turn
from shared.settings import launch

XI = 6  # depth scales that a trainable network may have, of the paper
LEARNED = 0.5  # accuracy of a network that counts as trainable


def theory(config: Config) -> dict[str, list[float]]:
  """6 xi_c over sigma_w^2, and its edge of chaos."""
  squares = config.map_gains
  fine = np.linspace(squares[0], squares[-1], 200)
  of_square = lambda s: (
    edge_of_chaos.depth_scales(jnp.tanh, jnp.sqrt(s), SIGMA_B).correlation
  )
  lines = jax.jit(jax.vmap(of_square))(jnp.asarray([*fine, *squares]))
  lines = XI * np.asarray(lines, np.float64)
  return {
    "squares": fine.tolist(),
    "depths": lines[:200].tolist(),
    "at_gains": lines[200:].tolist(),
  }


def map_figures(config: Config, results: Results) -> dict[str, Any]:
  """How the map agrees with its theory."""
  squares = config.map_gains
  depths = np.array(config.map_depths)
  rows = [results[f"map of depth {depth}"] for depth in depths]
  learned = np.array([row["accuracy"] for row in rows]) > LEARNED
  within = depths[:, None] <= np.asarray(theory(config)["at_gains"])
  deepest = np.where(learned, depths[:, None], 0).max(0)
  share = lambda of, among: float(of[among].mean()) if among.any() else None
  return {
    "edge_sigma_w_squared": float(
      edge_of_chaos.edge_of_chaos(jnp.tanh, SIGMA_B) ** 2
    ),
    "deepest_sigma_w_squared": squares[int(deepest.argmax())],
    "deepest_that_learned": int(deepest.max()),
    "learners_within_theory": share(within, learned),
    "within_theory_that_learned": share(learned, within),
  }


def network_figures(results: Results) -> dict[str, Any]:
  """Of every network and depth."""
  figures = {}
  for name in networks.NETWORKS:
    for row in results[name]:
      of_row = f"{key(name)}_{row['depth']}"
      figures[f"{of_row}_accuracy"] = row["accuracy"]
      figures[f"{of_row}_gradient_ratio"] = ratio(row["gradients"])
  for name in networks.IDENTITY_PATHS:
    path = results[f"identity path, {name}"]
    figures[f"{key(name)}_identity_ratio"] = ratio(path)
  return figures


def key(name: str) -> str:
  """Of a network, in result.json."""
  return re.sub(r"\W+", "_", name.lower())


def ratio(gradients: list[float]) -> float | None:
  """Of the first layer's to the last one's."""
  return gradients[0] / gradients[-1] if gradients[-1] else None


def check(config: Config, figures: dict[str, Any]) -> None:
  """What must hold at any size: the identity path of the two placements.

  Raises:
    RuntimeError: it does not.
  """
  depth = config.depths[-1]
  inside = figures["pre_norm_residual_identity_ratio"]
  after = figures["post_norm_residual_identity_ratio"]
  if inside is None or abs(inside - 1) > 1e-5:
    raise RuntimeError(
      f"the identity path of pre-norm residual layers passes on {inside} of "
      "the gradient, but should pass on all of it."
    )
  if after is None or (depth > 1 and after >= 0.99 ** (depth - 1)):
    raise RuntimeError(
      f"the identity path of {depth} post-norm residual layers passes on "
      f"{after} of the gradient, but should lose some in each."
    )


def metrics(results: Results) -> list[dict[str, Any]]:
  """Rows of metrics.csv."""
  return [
    {"network": name, "depth": row["depth"], "step": step, "loss": loss}
    for name in networks.NETWORKS
    for row in results[name]
    for step, loss in enumerate(row["losses"])
  ]


def write(
  path: pathlib.Path, config: Config, results: Results, result: dict[str, Any]
) -> None:
  """All files but the checkpoints."""
  trained = {name: results[name] for name in networks.NETWORKS}
  paths = {
    name: results[f"identity path, {name}"] for name in networks.IDENTITY_PATHS
  }
  rows = [results[f"map of depth {depth}"] for depth in config.map_depths]
  squares = config.map_gains
  drawn = {
    "gradients": plots.gradients(trained, paths),
    "training": plots.training(trained),
    "trainable": plots.trainable(squares, rows, theory(config)),
  }
  output.write_results(path, metrics(results), drawn, result)


def run(config: Config, workdir: str | None = None) -> dict[str, Any]:
  """The experiment: measure, train, write, check.

  Raises:
    ValueError: flags, the data or the workdir don't go together.
    FloatingPointError: a loss or gradient was not finite.
    RuntimeError: an identity path is not what it must be.
  """
  begin = time.perf_counter()
  config = config.in_order()
  data = image_data.load(config.dataset, config.data_dir)
  runs = [*network_runs(config, data), *map_runs(config, data)]
  path = output.folder(workdir)
  results, done_before = in_turn(runs, path, config, data)
  figures = network_figures(results) | map_figures(config, results)
  result = {
    "dataset": config.dataset,
    "resumed_from": done_before,
    **figures,
    "seconds": time.perf_counter() - begin,
  }
  if path is not None:
    write(path, config, results, result)
  # At the end, so that a failure can be looked at.
  check(config, figures)
  return result


def report(result: dict[str, Any]) -> str:
  """The result for people."""
  number = lambda value: "none" if value is None else f"{value:.2g}"
  percent = lambda value: "none" if value is None else f"{value:.0%}"
  depths = [
    int(name.split("_")[1])
    for name in result
    if re.fullmatch(r"plain_\d+_accuracy", name)
  ]
  lines = [
    "accuracy on validation images (gradient at the first layer / at the last)",
    f"{'layers':20}" + "".join(f"{depth:>18}" for depth in depths),
  ]
  for name in networks.NETWORKS:
    cells = [
      f"{result[f'{key(name)}_{depth}_accuracy']:.1%} "
      f"({number(result[f'{key(name)}_{depth}_gradient_ratio'])})"
      for depth in depths
    ]
    lines.append(f"{name:20}" + "".join(f"{cell:>18}" for cell in cells))
  r = result
  return "\n".join(
    [
      *lines,
      "identity path alone: pre-norm "
      f"{number(r['pre_norm_residual_identity_ratio'])}, post-norm "
      f"{number(r['post_norm_residual_identity_ratio'])}",
      f"plain tanh networks: edge of chaos at sigma_w^2 = "
      f"{r['edge_sigma_w_squared']:.3f}; the deepest that learned has "
      f"{r['deepest_that_learned']} layers, at {r['deepest_sigma_w_squared']}",
      f"{percent(r['learners_within_theory'])} of those that learned have at "
      "most 6 xi_c layers, and of all such "
      f"{percent(r['within_theory_that_learned'])} learned",
      f"{r['seconds']:.0f} s",
    ]
  )


if __name__ == "__main__":
  launch(Config, run, report)
