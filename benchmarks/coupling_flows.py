"""Coupling flows of several libraries, and the memory of Glow's gradient.

A part of log_determinants.py.  The flows are of the size that the literature's
examples have: 64 numbers, 8 affine couplings with two hidden layers of 128,
batches of 256.  distrax computes with the same networks and scales as revmom;
flowjax has its own, of the same sizes, with permutations between couplings.
"""

import importlib
from collections.abc import Callable
from typing import Any

import interleaved
import jax
import jax.numpy as jnp
import report

from revmom.models import glow, mlp, real_nvp

SIZE, LAYERS, HIDDEN, BATCH = 64, 8, (128, 128), 256
SECONDS = 20.0  # for the rounds of log_prob, and of its gradient
DEPTHS = (4, 16, 64)  # steps of Glow
OURS = "revmom"

# Parameters, and log_prob of them and of a batch.
Flow = tuple[Any, Callable[[Any, jax.Array], jax.Array]]


def perturbed(params: Any) -> Any:
  """Away from the start, where couplings are the identity."""
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(9), len(leaves))
  return structure.unflatten(
    leaf + 0.02 * jax.random.normal(key, leaf.shape)
    for leaf, key in zip(leaves, keys, strict=True)
  )


def ours(x: jax.Array, reversible: bool) -> Flow:
  flow = real_nvp(LAYERS, HIDDEN, reversible=reversible)
  return perturbed(flow.init(jax.random.key(1), x)), flow.log_prob


def distrax_flow(masked: bool) -> Flow:
  """By `SplitCoupling`, or by `MaskedCoupling`, on all elements."""
  distrax = importlib.import_module("distrax")
  network, half = mlp(HIDDEN), SIZE // 2
  inputs = SIZE if masked else half

  def layer(number: int, params: Any) -> Any:
    condition = lambda z: network.apply(params, z)

    def scale(outputs: jax.Array) -> Any:
      s, t = jnp.split(outputs, 2, -1)
      return distrax.ScalarAffine(shift=t, log_scale=2 * jnp.tanh(s / 2))

    swap = bool(number % 2)
    if masked:
      mask = (jnp.arange(SIZE) < half) ^ swap
      return distrax.MaskedCoupling(mask, condition, scale)
    block = lambda outputs: distrax.Block(scale(outputs), 1)
    return distrax.SplitCoupling(half, 1, condition, block, swap=swap)

  def log_prob(params: Any, x: jax.Array) -> jax.Array:
    layers = [layer(k, own) for k, own in enumerate(params)]
    base = distrax.MultivariateNormalDiag(jnp.zeros(SIZE), jnp.ones(SIZE))
    bijector = distrax.Inverse(distrax.Chain(layers[::-1]))
    return distrax.Transformed(base, bijector).log_prob(x)

  like = jnp.zeros((1, inputs))
  keys = jax.random.split(jax.random.key(1), LAYERS)
  params = [network.init(key, like, 2 * inputs) for key in keys]
  return perturbed(params), log_prob


def flowjax_flow() -> Flow:
  equinox, flowjax = map(importlib.import_module, ("equinox", "flowjax"))
  paramax = importlib.import_module("paramax")
  for name in ("flows", "distributions", "bijections"):
    importlib.import_module(f"flowjax.{name}")
  flow = flowjax.flows.coupling_flow(
    jax.random.key(2),
    base_dist=flowjax.distributions.Normal(jnp.zeros(SIZE)),
    transformer=flowjax.bijections.Affine(),
    flow_layers=LAYERS,
    nn_width=HIDDEN[0],
    nn_depth=len(HIDDEN),
  )
  params, static = equinox.partition(flow, equinox.is_inexact_array)
  whole = lambda params: paramax.unwrap(equinox.combine(params, static))
  return params, lambda params, x: whole(params).log_prob(x)


def measure(rounds: int, peers: dict[str, bool]) -> list[dict[str, Any]]:
  """log_prob of a batch and the gradient of its mean, of all contenders."""
  x = jax.random.normal(jax.random.key(0), (BATCH, SIZE))
  flows = {OURS: ours(x, False), "revmom, reversible": ours(x, True)}
  if peers["distrax"]:
    flows["distrax, split"] = distrax_flow(masked=False)
    flows["distrax, masked"] = distrax_flow(masked=True)
  if peers["flowjax"]:
    flows["flowjax"] = flowjax_flow()
  rows = []
  for task in ("log_prob", "gradient"):
    programs = {}
    for name, (params, log_prob) in flows.items():
      loss = lambda params, x, f=log_prob: -jnp.mean(f(params, x))
      function = log_prob if task == "log_prob" else jax.grad(loss)
      programs[name] = interleaved.compile(function, params, x)
    times = interleaved.time_rounds(programs, rounds, SECONDS)
    rows += [
      {
        "task": task,
        "name": name,
        "seconds": times[name],
        "temp_bytes": program.memory["temp"],
        "compile_s": program.compile_s,
      }
      for name, program in programs.items()
    ]
  return rows


def glow_memory(depths: tuple[int, ...] = DEPTHS) -> list[dict[str, Any]]:
  """Temporary bytes of a compiled gradient, by the number of Glow's steps."""
  rows = []
  for depth in depths:
    row: dict[str, Any] = {"depth": depth}
    for name, reversible in (("reversible", True), ("stored", False)):
      flow = glow(1, depth, 32, reversible=reversible)
      x = jax.ShapeDtypeStruct((16, 16, 16, 3), jnp.float32)
      params = jax.eval_shape(flow.init, jax.random.key(0), x)
      loss = lambda params, x, f=flow.log_prob: -jnp.mean(f(params, x))
      compiled = jax.jit(jax.grad(loss)).lower(params, x).compile()
      row[name] = int(compiled.memory_analysis().temp_size_in_bytes)
    rows.append(row)
  return rows


def tables(rows: list[dict[str, Any]], memory: list[dict[str, Any]]) -> str:
  """Markdown."""
  body = []
  for row in rows:
    reference = next(
      other["seconds"]
      for other in rows
      if (other["task"], other["name"]) == (row["task"], OURS)
    )
    spread = interleaved.spread(row["seconds"])
    body.append(
      (
        row["task"],
        row["name"],
        report.milliseconds(spread.median),
        report.spread_text(interleaved.ratio(row["seconds"], reference)),
        report.byte_count(row["temp_bytes"]),
        f"{row['compile_s']:.1f}",
      )
    )
  header = "of", "flow", "ms", "its time over revmom's", "temp memory"
  depths = [
    (
      str(row["depth"]),
      *map(report.byte_count, (row["reversible"], row["stored"])),
    )
    for row in memory
  ]
  return "\n\n".join(
    [
      "### Coupling flows",
      f"{SIZE} numbers, {LAYERS} affine couplings with hidden layers of "
      f"{HIDDEN}, batches of {BATCH}; the gradient is that of the mean in all "
      "parameters.",
      report.table((*header, "compile s"), body),
      "### Memory of Glow's gradient",
      "Images of 16 x 16 x 3, batches of 16, one level, networks of 32 "
      "channels: temporary memory of the compiled program, by "
      "`glow(reversible=True)`, the default, and by keeping activations.",
      report.table(("steps", "reversible", "stored"), depths),
    ]
  )
