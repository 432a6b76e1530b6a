"""Log-determinants and inverses of JAX functions: time, error and memory.

python benchmarks/log_determinants.py          # docs/benchmarks.md
python benchmarks/log_determinants.py --quick  # small sizes; only prints

All contenders compute log|det J| of the same function at the same point, in
float32, and run in turn in every round.  References are exact at every size:
closed forms, the layers' own log-determinants in float64, and for an SGD step,
whose Hessian is tridiagonal, the recurrence of continuants in NumPy.
"""

import functools
import importlib
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import coupling_flows
import interleaved
import jax
import jax.numpy as jnp
import numpy as np
import report
from absl import app, flags
from jax.flatten_util import ravel_pytree

import revmom
from revmom.jacobian import stochastic_log_det
from revmom.models import HALVES, affine, chain, mlp, swapped

_QUICK = flags.DEFINE_bool("quick", False, "small sizes; only prints")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "times that all contenders run")
_RESULTS = pathlib.Path(__file__).parent / "results" / "log_determinants.json"
_DOCUMENT = pathlib.Path(__file__).parents[1] / "docs" / "benchmarks.md"

SIZES = (64, 512, 4096, 10**6)  # floats that a map takes, at most
DENSE_LIMIT = 4096
KRYLOV_STEPS = 16  # of matfree; the first attempt of revmom
SECONDS = 30.0  # for the rounds of a map at a size
UNROLLED = (10, 25, 50, 100)  # momentum steps to be inverted
PEERS = ("matfree", "distrax", "flowjax", "oryx")
OTHER_NETWORK = "flowjax, another network"  # timed only
OURS, NAIVE = "revmom", "jacfwd, slogdet"
RATE, BETA, BETA2, DECAY = 0.1, 0.9, 0.99, 0.01


class Problem(NamedTuple):
  """A map, given constants, and the truth."""

  function: Callable  # (constants, *args) -> as many numbers as args
  constants: Any
  args: tuple
  reference: float
  symmetric: bool = False  # whether its Jacobian is
  estimated: bool = False  # whether stochastic methods are measured
  declared: Callable | None = None  # (constants, *args) -> log|det J|


class Answer(NamedTuple):
  """What a contender returns."""

  value: jax.Array
  stderr: Any = 0.0
  bias_bound: Any = 0.0


def loss(w: jax.Array) -> jax.Array:
  """A chain of D weights; its Hessian is tridiagonal."""
  return jnp.sum(jnp.logaddexp(w, -w)) + 0.5 * jnp.sum(jnp.diff(w) ** 2)


gradient = jax.grad(loss)


def continuant(diagonal: np.ndarray, beside: np.ndarray) -> float:
  """log det of a symmetric tridiagonal matrix, by the pivots of elimination."""
  total, pivot = 0.0, 1.0
  squares = [0.0, *(beside**2).tolist()]
  for entry, square in zip(diagonal.tolist(), squares, strict=True):
    pivot = entry - square / pivot
    total += math.log(pivot)
  return total


def sgd(size: int) -> Problem:
  """w <- w - alpha grad L(w), whose Jacobian is I - alpha H."""
  w = jax.random.normal(jax.random.key(0), (size,))
  neighbours = np.full(size, 2.0)
  neighbours[[0, -1]] = 1
  curvature = np.cosh(np.asarray(w, np.float64)) ** -2.0 + neighbours
  reference = continuant(1 - RATE * curvature, np.full(size - 1, RATE))
  step = lambda _, w: w - RATE * gradient(w)
  return Problem(step, (), (w,), reference, symmetric=True, estimated=True)


def momentum(size: int) -> Problem:
  """w and v of size / 2 each."""
  half = size // 2
  w, v = jax.random.normal(jax.random.key(0), (2, half))

  def step(_, w, v):
    v = BETA * v - RATE * gradient(w)
    return w + v, v

  reference = half * math.log(BETA)
  return Problem(step, (), (w, v), reference, estimated=True)


def adamw(size: int) -> Problem:
  """The third step, of w, m and v of size / 3 each."""
  third, t = size // 3, 3
  w, m, v = jax.random.normal(jax.random.key(0), (3, third))

  def step(_, w, m, v):
    g = gradient(w)
    m = BETA * m + (1 - BETA) * g
    v = BETA2 * v + (1 - BETA2) * g**2
    mean, square = m / (1 - BETA**t), v / (1 - BETA2**t)
    w = (1 - DECAY) * w - RATE * mean / (jnp.sqrt(square) + 1e-8)
    return w, m, v

  factors = BETA, BETA2, 1 - DECAY
  reference = third * math.fsum(math.log(factor) for factor in factors)
  return Problem(step, (), (w, m, v**2 + 0.01), reference)


def couplings(size: int) -> Problem:
  """Four affine couplings with networks of 16 units."""
  key = jax.random.key(0)
  network = mlp(hidden=(16,))
  pair = affine(network), affine(network, swapped(HALVES))
  layer = chain(*pair, *pair)
  x = jax.random.normal(key, (size,))
  leaves, structure = jax.tree.flatten(layer.init(key, x))
  keys = jax.random.split(key, len(leaves))
  params = structure.unflatten(
    leaf + 0.1 * jax.random.normal(key, leaf.shape)
    for key, leaf in zip(keys, leaves, strict=True)
  )
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, x))
    reference = float(layer.forward_and_log_det(*wide)[1])
  return Problem(
    lambda params, x: layer.forward_and_log_det(params, x)[0],
    params,
    (x,),
    reference,
    declared=lambda params, x: layer.forward_and_log_det(params, x)[1],
  )


PROBLEMS = {
  "SGD step": sgd,
  "momentum step": momentum,
  "AdamW step": adamw,
  "four affine couplings": couplings,
}


def contenders(problem: Problem) -> dict[str, Callable]:
  """name -> function of constants and arguments that returns an `Answer`."""
  size = sum(leaf.size for leaf in problem.args)
  key = jax.random.key(1)
  samples = 32 if size <= DENSE_LIMIT else 4

  def ours(*method, **options):
    def run(constants, *args):
      f = functools.partial(problem.function, constants)
      found = revmom.log_det(f, *method, **options)(*args)
      return Answer(found.value, found.stderr, found.bias_bound)

    return run

  result = {OURS: ours(key=key, num_samples=samples)}
  if size <= DENSE_LIMIT:
    result["revmom, dense"] = ours("dense")
    result[NAIVE] = functools.partial(naive, problem.function)
  if problem.declared is not None:
    declared = problem.declared
    result["revmom.models, declared"] = lambda *args: Answer(declared(*args))
    if size <= DENSE_LIMIT and installed("flowjax"):
      result[OTHER_NETWORK] = flowjax(size)
  if problem.symmetric:
    result["revmom, symmetric"] = functools.partial(
      symmetric, problem.function, key, samples
    )
  elif problem.estimated and size <= DENSE_LIMIT:
    options = {"key": key, "num_samples": samples}
    result["revmom, stochastic"] = ours("stochastic", **options)
  if problem.estimated and installed("matfree"):
    result["matfree"] = matfree(problem, key, samples)
  return result


def naive(function: Callable, constants: Any, *args: Any) -> Answer:
  """The whole matrix."""
  flat, unravel = ravel_pytree(args)
  image = lambda z: ravel_pytree(function(constants, *unravel(z)))[0]
  return Answer(jnp.linalg.slogdet(jax.jacfwd(image)(flat))[1])


def symmetric(
  function: Callable, key: jax.Array, samples: int, constants: Any, *args: Any
) -> Answer:
  """Lanczos quadrature."""
  f = functools.partial(function, constants)
  found = stochastic_log_det(f, args, key, symmetric=True, num_samples=samples)
  return Answer(found.value, found.stderr, found.bias_bound)


def matfree(problem: Problem, key: jax.Array, samples: int) -> Callable:
  """Its quadrature: of J if that is symmetric, else of J^T J."""
  from matfree import decomp, funm, stochtrace

  def run(constants, *args):
    flat, unravel = ravel_pytree(args)
    f = lambda z: ravel_pytree(problem.function(constants, *unravel(z)))[0]
    _, product = jax.linearize(f, flat)
    steps = min(KRYLOV_STEPS, flat.size)
    if problem.symmetric:
      tridiagonal = decomp.tridiag_sym(steps)
      integrand, factor = funm.monte_carlo_funm_sym_logdet(tridiagonal), 1.0
    else:
      bidiagonal = decomp.bidiag(steps)
      integrand, factor = funm.monte_carlo_funm_product_logdet(bidiagonal), 0.5
    sampler = stochtrace.sampler_signs(flat, num=samples)
    estimate = stochtrace.estimator_monte_carlo_mean_and_sem(
      integrand, sampler=sampler
    )
    mean, error = estimate(product, key)
    return Answer(factor * mean, factor * error)

  return run


def flowjax(size: int) -> Callable:
  """As many couplings of its own, with networks of as many units."""
  from flowjax import bijections

  half = size // 2
  layers = []
  for key in jax.random.split(jax.random.key(0), 4):
    layers += [
      bijections.Coupling(
        key,
        transformer=bijections.Affine(),
        untransformed_dim=half,
        dim=size,
        nn_width=16,
        nn_depth=1,
      ),
      bijections.Flip((size,)),
    ]
  stack = bijections.Chain(layers)
  return lambda _, x: Answer(stack.transform_and_log_det(x)[1])


def installed(package: str) -> bool:
  """Whether a peer can be imported beside this JAX."""
  try:
    importlib.import_module(package)
  except (ImportError, AttributeError):
    return False
  return True


def measure(name: str, size: int, rounds: int) -> dict[str, Any]:
  """All contenders for one map."""
  problem = PROBLEMS[name](size)
  programs, rows = {}, []
  for contender, function in contenders(problem).items():
    program = interleaved.compile(function, problem.constants, *problem.args)
    answer = Answer(*map(float, program.run()))
    programs[contender] = program
    error = abs(answer.value - problem.reference)
    rows.append(
      {
        "name": contender,
        "error": None if contender == OTHER_NETWORK else error,
        **answer._asdict(),
        "temp_bytes": program.memory["temp"],
        "compile_s": program.compile_s,
      }
    )
  times = interleaved.time_rounds(programs, rounds, SECONDS)
  return {
    "map": name,
    "floats": sum(leaf.size for leaf in problem.args),
    "reference": problem.reference,
    "rows": [row | {"seconds": times[row["name"]]} for row in rows],
  }


def unrolled(steps: int) -> Callable:
  """Momentum steps one after another, of w and v."""

  def run(w, v):
    for _ in range(steps):
      v = BETA * v - RATE * jnp.sin(w)
      w = w + v
    return w, v

  return run


def tracing(steps: int) -> dict[str, Any]:
  """Seconds to trace an inverse with its checks, and a log-determinant."""
  function = unrolled(steps)
  w, v = jnp.linspace(-1.0, 1.0, 8), jnp.ones(8)
  image = function(w, v)
  inverse = revmom.inverse(function)
  seconds = {
    "inverse": trace_seconds(inverse, image),
    "log_det": trace_seconds(revmom.log_det(function), w, v),
  }
  if installed("oryx"):
    oryx = importlib.import_module("oryx")
    seconds["oryx"] = trace_seconds(oryx.core.inverse(function), *image)
  restored = jax.jit(inverse)(image)
  error = max(
    float(abs(a - b).max()) for a, b in zip(restored, (w, v), strict=True)
  )
  return {"steps": steps, "restored_error": error, "seconds": seconds}


def trace_seconds(function: Callable, *args: Any) -> float:
  """Of the second trace, so that what is done once does not count."""
  for _ in range(2):
    begin = time.perf_counter()
    # A new function, or JAX would remember its trace.
    jax.make_jaxpr(lambda *args: function(*args))(*args)
    seconds = time.perf_counter() - begin
  return seconds


def main(argv: list[str]) -> None:
  """Measures, writes, prints."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; all options are flags")
  quick = _QUICK.value
  rounds = 2 if quick else _ROUNDS.value
  begin = time.perf_counter()
  peers = {peer: installed(peer) for peer in PEERS}
  result: dict[str, Any] = {
    "environment": interleaved.environment(),
    "peers": peers,
    "runs": [
      measure(name, size, rounds)
      for name in PROBLEMS
      for size in ((24,) if quick else SIZES)
    ],
    "tracing": [tracing(steps) for steps in ((2, 4) if quick else UNROLLED)],
    "flows": coupling_flows.measure(rounds, peers),
    "glow": coupling_flows.glow_memory(*(((2,),) if quick else ())),
  }
  result["duration_s"] = time.perf_counter() - begin
  text = tables(result)
  print(text)
  if not quick:
    _RESULTS.parent.mkdir(parents=True, exist_ok=True)
    _RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    report.insert(_DOCUMENT, text, "log_determinants")


# The section of docs/benchmarks.md.


def tables(result: dict[str, Any]) -> str:
  """Markdown."""
  parts = [
    "## Log-determinants of JAX functions",
    "`python benchmarks/log_determinants.py` writes this section, in "
    f"{result['duration_s']:.0f} s.  "
    + report.measured_on(result["environment"]),
    "Float32.  Times are medians over rounds that ran all contenders in turn; "
    "a ratio is the median over rounds, with the lowest and the highest: above "
    "one, `revmom.log_det` as called by default is faster.  Errors are "
    "distances from references in float64; beside them is what a stochastic "
    "method states: its standard error, and its bound on the bias (matfree "
    f"has none).  Those take 32 random directions and {KRYLOV_STEPS} Krylov "
    "steps, revmom more where these do not suffice; 4 directions for a million "
    "floats.  A dense matrix of a million rows would take 4 TB.",
  ]
  absent = [peer for peer, found in result["peers"].items() if not found]
  if absent:
    parts.append(
      f"Not installed, or not importable beside this JAX: {', '.join(absent)}."
    )
  for name in PROBLEMS:
    runs = [run for run in result["runs"] if run["map"] == name]
    parts += [f"### {name[0].upper()}{name[1:]}", _table(runs)]
  parts.append(_tracing_table(result["tracing"]))
  parts.append(coupling_flows.tables(result["flows"], result["glow"]))
  return "\n\n".join(parts)


def _table(runs: list[dict[str, Any]]) -> str:
  body = []
  for run in runs:
    ours = next(row for row in run["rows"] if row["name"] == OURS)["seconds"]
    for row in run["rows"]:
      stated = (
        f"{row['stderr']:.1e}, {row['bias_bound']:.1e}" if row["stderr"] else ""
      )
      body.append(
        (
          str(run["floats"]),
          row["name"],
          report.milliseconds(statistics.median(row["seconds"])),
          report.spread_text(interleaved.ratio(row["seconds"], ours)),
          "" if row["error"] is None else f"{row['error']:.1e}",
          stated,
          report.byte_count(row["temp_bytes"]),
          f"{row['compile_s']:.1f}",
        )
      )
  header = (
    "floats",
    "contender",
    "ms",
    "its time over revmom's",
    "error",
    "stated error, bias",
    "temp memory",
    "compile s",
  )
  return report.table(header, body)


def _tracing_table(rows: list[dict[str, Any]]) -> str:
  names = list(rows[0]["seconds"])
  body = [
    (
      str(row["steps"]),
      *(f"{row['seconds'][name]:.3f}" for name in names),
      f"{row['seconds']['inverse'] / row['steps'] * 1e3:.2f}",
      f"{row['restored_error']:.1e}",
    )
    for row in rows
  ]
  titles = {
    "inverse": "revmom.inverse, s",
    "log_det": "revmom.log_det, s",
    "oryx": "oryx.core.inverse, s",
  }
  header = (
    "steps",
    *(titles[name] for name in names),
    "revmom.inverse, ms/step",
    "error of the inverse",
  )
  return (
    "### Tracing an inverse\n\nUnrolled momentum steps of 8 weights. "
    "`revmom.inverse` is verified by a round trip each time it is traced, "
    "which is counted.\n\n" + report.table(header, body)
  )


if __name__ == "__main__":
  app.run(main)
