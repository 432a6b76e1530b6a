"""How often a hypergradient of a random ordinary network is not a number.

    python benchmarks/reversal_rate.py  # 400 networks: over an hour
    python benchmarks/reversal_rate.py --networks=40

Each network is drawn at random: batch 1 to 100, widths 1 to 100, 1 to 4 layers
of a kind, normalised or not, smooth or not, float32, bfloat16 or float64, and
so are the length of its run, the optimizer, clipping, the mode of second
derivatives, and whether the hypergradient is compiled as a whole or called
eagerly.  The gradient of the sum of squares of the final parameters with
respect to the optimizer and the initial parameters must be finite and equal to
what autodiff makes of the stored run of the same integers.  Where they differ
by more than a thousandth, the same network is run again in float64: there a
difference that is due to rounding is gone.
"""

import collections
import json
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import lax

import revmom
from revmom.optimizers.gradients import clip as clip_together
from revmom.optimizers.slot import PARAMS
from revmom.steps.equations import value_after

NETWORKS = flags.DEFINE_integer("networks", 400, "how many are drawn")
FIRST = flags.DEFINE_integer("first", 0, "number of the first")
RESIDUES = flags.DEFINE_integer(
  "residue_bits", 0, "Kept of each gradient; then only NaN is looked for."
)
OUT = flags.DEFINE_string("out", None, "a JSON file of all results")

KINDS = ("dense", "convolution", "attention", "lstm")
NORMALISATIONS = ("none", "batch", "layer")
ACTIVATIONS = {
  "gelu": jax.nn.gelu,
  "silu": jax.nn.silu,
  "softplus": jax.nn.softplus,
  "tanh": jnp.tanh,
  "relu": jax.nn.relu,
}
OPTIMIZERS = {
  "sgd": revmom.sgd(1e-2, 0.9),
  "adam": revmom.adam(1e-2),
  "adamw": revmom.adamw(1e-2, weight_decay=1e-2),
  "rmsprop": revmom.rmsprop(1e-3),
  "muon": revmom.muon(1e-2),
}
MODES = ("auto", "forward_over_reverse", "reverse_over_reverse")
LENGTHS = (1, 2, 3, 7, 20, 100)
DTYPES = ("float32", "float32", "bfloat16", "float64")
# The reference is compiled in less time, and to slower code.
_QUICKLY = {"xla_llvm_disable_expensive_passes": True}


class Case(NamedTuple):
  """What is drawn."""

  seed: int
  kind: str
  normalisation: str
  activation: str
  dtype: str
  batch: int
  widths: tuple[int, ...]
  steps: int
  optimizer: str
  clipped: bool
  mode: str
  jitted: bool


def draw(seed: int) -> Case:
  """The case of a number."""
  rng = np.random.default_rng([20_261_130, seed])
  pick = lambda options: options[rng.integers(len(options))]
  size = lambda most: int(round(math.exp(rng.uniform(0, math.log(most)))))
  kind = pick(KINDS)
  most = {"dense": 100, "convolution": 12, "attention": 24, "lstm": 24}[kind]
  layers = int(rng.integers(1, 5 if kind == "dense" else 3))
  return Case(
    seed=seed,
    kind=kind,
    normalisation=pick(NORMALISATIONS),
    activation=pick(tuple(ACTIVATIONS)),
    dtype=pick(DTYPES),
    batch=size(100 if kind == "dense" else 20),
    widths=tuple(size(most) for _ in range(layers + 1)),
    steps=pick(LENGTHS),
    optimizer=pick(tuple(OPTIMIZERS)),
    clipped=bool(rng.integers(2)),
    mode=pick(MODES),
    jitted=bool(rng.integers(4)),
  )


def _normalise(case: Case, x: jax.Array) -> jax.Array:
  if case.normalisation == "none":
    return x
  axis = -1 if case.normalisation == "layer" else tuple(range(x.ndim - 1))
  mean = jnp.mean(x, axis, keepdims=True)
  variance = jnp.var(x, axis, keepdims=True)
  return (x - mean) * lax.rsqrt(variance + jnp.asarray(1e-5, x.dtype))


def _layer(case: Case, w: dict, x: jax.Array) -> jax.Array:
  """One layer; x is [batch, length, features], or [batch, features]."""
  if case.kind == "dense":
    return x @ w["w"] + w["b"][None]
  if case.kind == "convolution":
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    length = x.shape[1]
    parts = [padded[:, i : i + length] @ w["w"][i] for i in range(3)]
    return parts[0] + parts[1] + parts[2] + w["b"][None, None]
  if case.kind == "attention":
    q, k, v = (x @ w["w"][i] for i in range(3))
    scores = q @ jnp.swapaxes(k, -1, -2)
    return jax.nn.softmax(scores, -1) @ v + w["b"][None, None]
  units = w["b"].shape[0] // 4

  def step(carry, now):
    h, c = carry
    gates = now @ w["w"] + h @ w["r"] + w["b"][None]
    i, f, g, o = jnp.split(gates, 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h

  zero = jnp.zeros((x.shape[0], units), x.dtype)
  return jnp.swapaxes(
    lax.scan(step, (zero, zero), jnp.swapaxes(x, 0, 1))[1], 0, 1
  )


def problem(case: Case) -> tuple[Any, Any, Any]:
  """(loss, parameters, batches) of a case."""
  rng = np.random.default_rng([7, case.seed])
  normal = lambda *shape: rng.normal(size=shape)
  wide = "float64" if case.dtype == "float64" else "float32"
  # By NumPy, which need not compile that for each shape.
  array = lambda values: jnp.asarray(
    values.astype(wide).astype(jnp.dtype(case.dtype))
  )
  params = []
  for fan_in, fan_out in zip(case.widths, case.widths[1:], strict=False):
    draw_weights = lambda *shape, n=fan_in: array(normal(*shape) / n**0.5)
    if case.kind == "lstm":
      layer = {
        "w": draw_weights(fan_in, 4 * fan_out),
        "r": draw_weights(fan_out, 4 * fan_out),
        "b": draw_weights(4 * fan_out),
      }
    else:
      times = {"dense": (), "convolution": (3,), "attention": (3,)}[case.kind]
      layer = {
        "w": draw_weights(*times, fan_in, fan_out),
        "b": draw_weights(fan_out),
      }
    params.append(layer)
  middle = () if case.kind == "dense" else (5,)
  shape = case.steps, case.batch, *middle
  batches = {
    "x": array(normal(*shape, case.widths[0])),
    "y": array(normal(*shape, case.widths[-1])),
  }

  def loss(params, batch):
    x = batch["x"]
    for number, layer in enumerate(params):
      x = _layer(case, layer, x)
      if number < len(params) - 1 or len(params) == 1:
        x = ACTIVATIONS[case.activation](_normalise(case, x))
    return jnp.mean((x - batch["y"]) ** 2)

  return loss, params, batches


def objective_of(params: Any) -> jax.Array:
  """The sum of squares."""
  return sum(
    jnp.sum(leaf.astype(jnp.promote_types(leaf.dtype, "float32")) ** 2)
    for leaf in jax.tree.leaves(params)
  )


def stored(
  loss, optimizer, params, batches, steps, objective=objective_of
) -> jax.Array:
  """The objective of a run that autodiff stores, at the integers of the run.

  Each new value is that of the library's integers, and differentiates as the
  equation that it rounds.
  """
  state = jax.lax.stop_gradient(optimizer).init(
    lax.stop_gradient(params), num_steps=steps
  )
  fixed = jax.lax.stop_gradient(optimizer)
  known = fixed.resolve_for(state)
  dynamics = optimizer.resolve(params, steps, state.packing)
  exact = lambda value, approximate: (
    approximate + lax.stop_gradient(value - approximate)
  )
  start = [
    {PARAMS: exact(view, wide)}
    | {name: jnp.zeros_like(view) for name in leaf.integers if name != PARAMS}
    for leaf, view, wide in zip(
      state.leaves,
      known.views(state.leaves),
      dynamics.pack(jax.tree.leaves(params)),
      strict=True,
    )
  ]

  def step(carry, batch):
    state, values = carry
    tree = state.as_params([own[PARAMS] for own in values])
    gradients = jax.tree.map(
      lambda g: g.astype(jnp.promote_types(g.dtype, "float32")),
      jax.grad(loss)(tree, batch),
    )
    packed = dynamics.packing.pack(jax.tree.leaves(gradients))
    packed = clip_together(packed, dynamics.thresholds(state.count))
    after = fixed.forward(state, lambda _: lax.stop_gradient(gradients))
    t, news = state.count, []
    for i, (old, gradient, leaf) in enumerate(
      zip(values, packed, after.leaves, strict=True)
    ):
      equations = dynamics.at(i, t)
      now = known.now(state.schedules, i, t)
      new: dict[str, jax.Array] = {}
      for role in equations.roles:
        name = role.name
        forgotten = equations.forgetting(t).get(name)
        kept = old[name] if forgotten is None else (1 - forgotten) * old[name]
        float_value = kept + equations.increment(name, gradient, new, t)
        true = value_after(
          lax.stop_gradient(equations), role, leaf, now, known.dtypes[i]
        )
        new[name] = exact(lax.stop_gradient(true), float_value)
      news.append(new)
    return (after, news), None

  (state, values), _ = lax.scan(step, (state, start), batches)
  return objective(state.as_params([own[PARAMS] for own in values]))


def optimizer_of(case: Case) -> revmom.ReversibleOptimizer:
  """The optimizer of a case."""
  optimizer = OPTIMIZERS[case.optimizer]
  return revmom.clipped(optimizer, 0.5) if case.clipped else optimizer


def hypergradient(case: Case, loss: Any) -> Any:
  """(optimizer, parameters, batches) -> the objective's by the first two."""

  def ours(optimizer, params, batches):
    result = revmom.train(
      loss, optimizer, params, batches, second_order_mode=case.mode
    )
    return objective_of(result.params)

  wrap = jax.jit if case.jitted else lambda f: f
  return wrap(jax.grad(ours, (0, 1)))


def is_finite(tree: Any) -> bool:
  """Whether all elements are numbers."""
  wide = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree))
  return all(np.isfinite(leaf).all() for leaf in wide)


def run(case: Case, residue_bits: int = 0) -> tuple[bool, float]:
  """Whether all is finite, and the largest error beside the stored run.

  With residues the run is another one, and there is no error beside it.
  """
  with jax.enable_x64(case.dtype == "float64"):
    loss, params, batches = problem(case)
    optimizer = optimizer_of(case)
    got = hypergradient(case, loss)(optimizer, params, batches)
    if not is_finite(got):
      return False, math.nan
    theirs = lambda optimizer, params: stored(
      loss, optimizer, params, batches, case.steps
    )
    reference = jax.jit(jax.grad(theirs, (0, 1))).lower(optimizer, params)
    expected = reference.compile(_QUICKLY)(optimizer, params)
    return True, _largest_error(got, expected)


def run_and_check(case: Case, residue_bits: int = 0) -> dict:
  """`run`, and whether the derivative is right, as a row of results."""
  finite, error = run(case, residue_bits)
  exact = error
  if finite and error > 1e-3 and case.dtype != "float64":
    finite, exact = run(case._replace(dtype="float64"))
  limit = 1e-3 if error <= 1e-3 else 1e-6
  return case._asdict() | {
    "finite": finite,
    "error": error,
    "error in float64": exact,
    "right": finite and (residue_bits > 0 or exact <= limit),
  }


def _largest_error(got: Any, expected: Any) -> float:
  """Of an array, relative to its largest element and the largest of all."""
  wide = lambda leaf: np.asarray(leaf, np.float64)
  most = max(
    np.abs(wide(b)).max(initial=0) for b in jax.tree.leaves(expected[1])
  )
  error = 0.0
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    scale = max(np.abs(wide(b)).max(initial=0), 1e-3 * most, 1e-30)
    error = max(error, np.abs(wide(a) - wide(b)).max(initial=0) / scale)
  return float(error)


def main(_: Any) -> None:
  """Draws, runs and prints."""
  jax.config.update("jax_numpy_dtype_promotion", "standard")
  table: dict = collections.defaultdict(lambda: [0, 0])
  results = []
  for seed in range(FIRST.value, FIRST.value + NETWORKS.value):
    case = draw(seed)
    results.append(run_and_check(case, RESIDUES.value))
    finite = results[-1]["finite"]
    for field in (
      "kind",
      "normalisation",
      "activation",
      "dtype",
      "steps",
      "optimizer",
      "clipped",
      "mode",
      "jitted",
    ):
      entry = table[field, str(getattr(case, field))]
      entry[0] += 1
      entry[1] += not finite
    if not results[-1]["right"]:
      print("!", results[-1], flush=True)
    jax.clear_caches()
    if (seed + 1) % 20 == 0:
      bad = sum(not r["finite"] for r in results)
      print(f"{bad} of {len(results)} are not a number", flush=True)
  failed = sum(not r["finite"] for r in results)
  wrong = sum(r["finite"] and not r["right"] for r in results)
  print(
    f"\njax {jax.__version__}: not a number {failed} of {len(results)}, "
    f"wrong {wrong}\n"
  )
  print("| what is drawn | networks | not a number |\n|---|---|---|")
  for (field, value), (count, bad) in sorted(table.items()):
    print(f"| {field} {value} | {count} | {bad} |")
  for dtype in sorted(set(DTYPES)):
    errors = [
      r["error"] for r in results if r["dtype"] == dtype and r["finite"]
    ]
    if errors:
      print(
        f"\n{dtype}: error beside the stored run, median "
        f"{np.median(errors):.1e}, largest {max(errors):.1e}"
      )
  if OUT.value:
    with open(OUT.value, "w") as file:
      json.dump({"jax": jax.__version__, "results": results}, file)


if __name__ == "__main__":
  app.run(main)
