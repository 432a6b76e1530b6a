"""Gradient flow, spectra and curvature: their cost, and that of others.

python benchmarks/trainability.py          # a minute; docs/benchmarks.md
python benchmarks/trainability.py --quick  # less; only prints

A report of all norms beside one gradient of the same network; singular values
of all Jacobians, computed and estimated, by size; and the same figures by
PyTorch: norms by forward and backward hooks, and the largest eigenvalue and
trace of a Hessian by power iteration and Hutchinson's estimator, with the stop
rule of PyHessian.  All run in turn in every round.
"""

import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import interleaved
import jax
import jax.numpy as jnp
import numpy as np
import report
from absl import app, flags

from revmom.analysis import gradient_flow, layer_curvature, layer_spectra
from revmom.analysis.gradients import linear_maps

_QUICK = flags.DEFINE_bool("quick", False, "tiny sizes; only prints")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "times that all contenders run")
_RESULTS = pathlib.Path(__file__).parent / "results" / "trainability.json"
_DOCUMENT = pathlib.Path(__file__).parents[1] / "docs" / "benchmarks.md"

WANTED_NORMS = 3.0  # of a report over one gradient, at most
GRADIENT, REPORT = "one gradient", "revmom, all norms"
HOOKS, PLAIN = "torch, with hooks", "torch, one gradient"


class Size(NamedTuple):
  """A tanh network."""

  depth: int
  width: int
  batch: int


SIZES = (Size(10, 256, 128), Size(50, 256, 128), Size(10, 1024, 128))
WIDTHS = (64, 256, 512)
SPECTRUM_DEPTH = 10


def weights(size: Size) -> np.ndarray:
  """Of all layers [L, W, W], of unit gain."""
  draw = np.random.default_rng(0).normal(size=(size.depth, *[size.width] * 2))
  return (draw / size.width**0.5).astype(np.float32)


def inputs(size: Size) -> np.ndarray:
  """[B, W]."""
  draw = np.random.default_rng(1).normal(size=(size.batch, size.width))
  return draw.astype(np.float32)


def layer(w: jax.Array, x: jax.Array) -> jax.Array:
  """The network of all contenders."""
  return jnp.tanh(x @ w)


def loss(y: jax.Array) -> jax.Array:
  """Likewise."""
  return jnp.sum(y * y)


def norm_programs(size: Size) -> dict[str, interleaved.Program]:
  """One gradient, and all norms."""

  def gradient(w, x):
    run = lambda w, x: loss(
      jax.lax.scan(lambda x, w: (layer(w, x), None), x, w)[0]
    )
    return jax.grad(run, (0, 1))(w, x)

  report_of = lambda w, x: gradient_flow(layer, w, x, loss=loss)
  w, x = jnp.asarray(weights(size)), jnp.asarray(inputs(size))
  return {
    GRADIENT: interleaved.compile(gradient, w, x),
    REPORT: interleaved.compile(report_of, w, x),
  }


def as_program(run: Callable[[], Any]) -> interleaved.Program:
  """One that nothing compiles."""
  return interleaved.Program(run, {}, 0.0)


def torch_network(size: Size) -> tuple[Any, Any, Any]:
  """Modules, their input, and torch itself."""
  import torch

  layers = []
  for w in weights(size):
    linear = torch.nn.Linear(size.width, size.width, bias=False)
    linear.weight.data = torch.tensor(w.T.copy())
    layers += [torch.nn.Sequential(linear, torch.nn.Tanh())]
  return torch.nn.Sequential(*layers), torch.tensor(inputs(size)), torch


def torch_programs(size: Size) -> dict[str, interleaved.Program]:
  """One gradient, and the norms of all layers by hooks."""
  network, x, torch = torch_network(size)

  def gradient() -> None:
    network.zero_grad()
    leaf = x.clone().requires_grad_(True)
    (network(leaf) ** 2).sum().backward()

  def hooked() -> dict[str, list[float]]:
    found: dict[str, list[Any]] = {"activations": [], "gradients": []}
    of = lambda name, tensor: found[name].append(tensor.detach().norm())
    handles = []
    for module in network:
      handles += [
        module.register_forward_hook(
          lambda module, args, y: of("activations", y)
        ),
        module.register_full_backward_hook(
          lambda module, before, after: of("gradients", after[0])
        ),
      ]
    gradient()
    for handle in handles:
      handle.remove()
    found["weights"] = [module[0].weight.grad.norm() for module in network]
    return {name: torch.stack(ns).tolist() for name, ns in found.items()}

  return {PLAIN: as_program(gradient), HOOKS: as_program(hooked)}


def norms(size: Size, rounds: int) -> dict[str, Any]:
  """Times, and how far torch's norms are from ours."""
  programs = norm_programs(size) | torch_programs(size)
  flow, hooked = programs[REPORT].run(), programs[HOOKS].run()
  ours = np.asarray(flow.gradients.norm[1:])
  theirs = np.asarray(hooked["gradients"][::-1])
  for program in programs.values():
    program.run()
  return {
    "size": size,
    "seconds": interleaved.time_rounds(programs, rounds, math.inf),
    "difference": float(np.abs(ours / theirs - 1).max()),
  }


def spectra(width: int, rounds: int, depth: int) -> dict[str, Any]:
  """Computed and estimated spectra of the same network, one example."""
  size = Size(depth, width, 1)
  w, x = jnp.asarray(weights(size)), jnp.asarray(inputs(size)[0])
  programs, found = {}, {}
  before = linear_maps.DENSE
  for name, dense in (("computed", width), ("estimated", width - 1)):
    linear_maps.DENSE = dense
    # A function of its own, lest the first one's program is found again.
    measure = lambda w, x: layer_spectra(layer, w, x)
    programs[name] = interleaved.compile(measure, w, x)
    found[name] = programs[name].run()
  linear_maps.DENSE = before
  truth = np.asarray(found["computed"].layers.log_largest.value)
  low, high = np.asarray(found["estimated"].layers.log_largest.interval).T
  return {
    "width": width,
    "depth": depth,
    "seconds": interleaved.time_rounds(programs, rounds, math.inf),
    "covered": bool(((low <= truth + 1e-5) & (truth <= high)).all()),
    "interval": float((high - low).max()),
  }


def torch_curvature(size: Size, steps: int, samples: int) -> Callable[[], Any]:
  """Largest eigenvalue by power iteration, trace by Hutchinson's estimator.

  Of the first layer's block; both stop as PyHessian does, when two successive
  results differ by less than 1e-3 of the latter.
  """
  network, x, torch = torch_network(size)
  weight = network[0][0].weight

  def run() -> tuple[float, float]:
    torch.manual_seed(0)
    (bar,) = torch.autograd.grad(
      (network(x) ** 2).mean(), weight, create_graph=True
    )
    product = lambda v: torch.autograd.grad(bar, weight, v, retain_graph=True)[
      0
    ]
    settled = lambda new, old: abs(new - old) / (abs(new) + 1e-6) < 1e-3
    v, value = torch.randn_like(weight), 0.0
    for _ in range(steps):
      v = v / v.norm()
      image = product(v)
      new = float((image * v).sum())
      if settled(new, value):
        break
      value, v = new, image
    trace, means = [], [0.0]
    for _ in range(samples):
      v = torch.randint_like(weight, 2) * 2 - 1
      trace.append(float((product(v) * v).sum()))
      means.append(statistics.mean(trace))
      if settled(means[-1], means[-2]):
        break
    return new, means[-1]

  return run


def curvature(size: Size, rounds: int) -> dict[str, Any]:
  """Of the first layer, against power iteration and the dense Hessian."""
  w, x = jnp.asarray(weights(size)), jnp.asarray(inputs(size))
  run = lambda first, x: jnp.mean(
    jax.lax.scan(lambda x, w: (layer(w, x), None), layer(first, x), w[1:])[0]
    ** 2
  )

  def ours(first, x):
    return layer_curvature(
      lambda params: run(params["first"], x),
      {"first": first},
      jax.random.key(0),
      num_samples=8,
      num_steps=16,
    )

  hessian = jax.jit(jax.hessian(lambda flat: run(flat.reshape(w[0].shape), x)))(
    w[0].ravel()
  )
  programs = {
    "revmom": interleaved.compile(ours, w[0], x),
    "torch, as PyHessian": as_program(torch_curvature(size, 100, 100)),
  }
  values = np.linalg.eigvalsh(np.asarray(hessian, np.float64))
  found = programs["revmom"].run()
  theirs = programs["torch, as PyHessian"].run()
  largest = np.abs(values).max()
  trace = found.traces[0]
  low, high = (float(end) for end in trace.interval)
  return {
    "size": size,
    "seconds": interleaved.time_rounds(programs, rounds, math.inf),
    "largest_errors": {
      "revmom": float(abs(found.largest[0].values[0] - values[-1]) / largest),
      "torch, as PyHessian": float(abs(abs(theirs[0]) - largest) / largest),
    },
    "trace_errors": {
      "revmom": float(abs(trace.value - values.sum()) / np.abs(values).sum()),
      "torch, as PyHessian": float(
        abs(theirs[1] - values.sum()) / np.abs(values).sum()
      ),
    },
    "covered": bool(low <= values.sum() <= high),
  }


def tables(result: dict[str, Any]) -> str:
  """The section of docs/benchmarks.md."""
  parts = [
    "## Trainability",
    "`python benchmarks/trainability.py` writes this section.  "
    + report.measured_on(result["environment"]),
    "Times are medians over rounds that ran all contenders in turn. A ratio is "
    "the median over rounds, with the lowest and the highest.",
    *(_norms_table(run) for run in result["norms"]),
    _spectra_table(result["spectra"]),
    _curvature_table(result["curvature"]),
  ]
  return "\n\n".join(parts)


def _norms_table(run: dict[str, Any]) -> str:
  seconds = run["seconds"]
  own = interleaved.ratio(seconds[REPORT], seconds[GRADIENT])
  body = [
    (
      name,
      report.milliseconds(statistics.median(times)),
      report.spread_text(interleaved.ratio(times, seconds[base])),
    )
    for name, base, times in (
      (name, GRADIENT if name in (GRADIENT, REPORT) else PLAIN, times)
      for name, times in seconds.items()
    )
  ]
  reached = "reached" if own.median <= WANTED_NORMS else "**not reached**"
  depth, width, batch = run["size"]
  return "\n\n".join(
    [
      f"### All norms: {depth} layers of {width}, batch {batch}",
      f"Wanted: at most {WANTED_NORMS:g} gradients; got "
      f"{report.spread_text(own)}, {reached}. torch's gradient norms differ by "
      f"{run['difference']:.1g}.",
      report.table(("contender", "ms", "over its own gradient"), body),
    ]
  )


def _spectra_table(runs: list[dict[str, Any]]) -> str:
  body = [
    (
      str(run["width"]),
      *(
        report.milliseconds(statistics.median(run["seconds"][name]))
        for name in ("computed", "estimated")
      ),
      f"{math.expm1(run['interval']):.1%}",
      "yes" if run["covered"] else "**no**",
    )
    for run in runs
  ]
  return "\n\n".join(
    [
      f"### Spectra of {runs[0]['depth']} layers and of their products",
      "Computed: all singular values, of all layers and of the products up to "
      "each. Estimated: by Krylov spaces, of all layers and of the whole.",
      report.table(
        (
          "width",
          "computed, ms",
          "estimated, ms",
          "interval of the largest",
          "covers all",
        ),
        body,
      ),
    ]
  )


def _curvature_table(run: dict[str, Any]) -> str:
  body = [
    (
      name,
      report.milliseconds(statistics.median(times)),
      f"{run['largest_errors'][name]:.1g}",
      f"{run['trace_errors'][name]:.1g}",
      ("yes" if run["covered"] else "no") if name == "revmom" else "none given",
    )
    for name, times in run["seconds"].items()
  ]
  depth, width, batch = run["size"]
  return "\n\n".join(
    [
      f"### Curvature of the first of {depth} layers of {width}, batch {batch}",
      "Errors are those of the largest eigenvalue over the largest, and of the "
      "trace over the sum of magnitudes of all eigenvalues, of the dense "
      "Hessian. revmom's figures include the smallest eigenvalue and the "
      "spectral density.",
      report.table(
        (
          "contender",
          "ms",
          "error of the largest",
          "error of the trace",
          "interval of the trace covers",
        ),
        body,
      ),
    ]
  )


def main(argv: list[str]) -> None:
  """Measures, writes, prints."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; all options are flags")
  quick, begin = _QUICK.value, time.perf_counter()
  sizes = (Size(3, 16, 4),) if quick else SIZES
  widths = (32,) if quick else WIDTHS
  rounds = 2 if quick else _ROUNDS.value
  result: dict[str, Any] = {
    "environment": interleaved.environment(),
    "norms": [norms(size, rounds) for size in sizes],
    "spectra": [
      spectra(width, rounds, 3 if quick else SPECTRUM_DEPTH) for width in widths
    ],
    "curvature": curvature(
      Size(3, 8, 16) if quick else Size(4, 24, 256), rounds
    ),
  }
  result["duration_s"] = time.perf_counter() - begin
  text = tables(result)
  print(text)
  if not quick:
    _RESULTS.parent.mkdir(parents=True, exist_ok=True)
    _RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    report.insert(_DOCUMENT, text, "trainability")


if __name__ == "__main__":
  app.run(main)
