"""The hypergradient through 1000 AdamW steps of a model the size of GPT-2.

  python benchmarks/gpt2.py            # compiles, and says how much memory
  python benchmarks/gpt2.py --run      # runs it too: wants a GPU
  python benchmarks/gpt2.py --run --layers=2 --width=64 --heads=2 \
    --vocabulary=256 --context=64 --batch_size=4 --steps=50

124M parameters in bfloat16, batch 8 x 1024: what stored autodiff would keep of
1000 steps, three float32 numbers for each parameter, is 1.5 TB.  The
hypergradient is that of a held-out loss with respect to the learning rate, b1,
b2 and the decay of every step, and to a weight for every training sequence.
Compiling takes about a minute, and nothing of the model's size is allocated
for it.
"""

import json
import pathlib
import time
from typing import Any

import interleaved
import jax
import jax.numpy as jnp
import numpy as np
import report
from absl import app, flags
from jax import lax

import revmom

_HERE = pathlib.Path(__file__).parent
_RUN = flags.DEFINE_bool("run", False, "Run what was compiled.")
_LAYERS = flags.DEFINE_integer("layers", 12, "Blocks.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 768, "Of the residual stream.")
_HEADS = flags.DEFINE_integer("heads", 12, "Of each attention.")
_VOCABULARY = flags.DEFINE_integer("vocabulary", 50257, "Tokens.")
_CONTEXT = flags.DEFINE_integer("context", 1024, "Tokens of a sequence.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Sequences a step.")
_STEPS = flags.DEFINE_integer("steps", 1000, "AdamW steps.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "A JSON file for the figures.")
_DOC = flags.DEFINE_string("doc", None, "A markdown file for the table.")


def init(key: jax.Array) -> dict[str, jax.Array]:
  """Parameters in bfloat16; those of all blocks are stacked."""
  width, layers = _WIDTH.value, _LAYERS.value
  shapes = {
    "tokens": (_VOCABULARY.value, width),
    "positions": (_CONTEXT.value, width),
    "attention_in": (layers, width, 3 * width),
    "attention_out": (layers, width, width),
    "mlp_in": (layers, width, 4 * width),
    "mlp_out": (layers, 4 * width, width),
  }
  keys = jax.random.split(key, len(shapes))
  params = {
    name: 0.02 * jax.random.normal(k, shape, jnp.bfloat16)
    for k, (name, shape) in zip(keys, shapes.items(), strict=True)
  }
  scales = {"norm_attention": (layers, width), "norm_mlp": (layers, width)}
  scales["norm_final"] = (width,)
  return params | {
    name: jnp.ones(shape, jnp.bfloat16) for name, shape in scales.items()
  }


def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
  """Layer normalisation without a shift, in float32."""
  wide = x.astype(jnp.float32)
  centred = wide - wide.mean(-1, keepdims=True)
  unit = centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
  return unit.astype(x.dtype) * scale


def block(x: jax.Array, layer: dict[str, jax.Array]) -> jax.Array:
  """Pre-norm attention and perceptron, x [batch, context, width]."""
  heads = lambda a: a.reshape(*a.shape[:2], _HEADS.value, -1)
  mixed = norm(x, layer["norm_attention"]) @ layer["attention_in"]
  query, key, value = map(heads, jnp.split(mixed, 3, -1))
  seen = jax.nn.dot_product_attention(query, key, value, is_causal=True)
  x = x + seen.reshape(x.shape) @ layer["attention_out"]
  hidden = jax.nn.gelu(norm(x, layer["norm_mlp"]) @ layer["mlp_in"])
  return x + hidden @ layer["mlp_out"]


def losses(params: dict[str, jax.Array], tokens: jax.Array) -> jax.Array:
  """Mean cross-entropy of each sequence, [batch]; tokens [batch, context + 1].

  Blocks and the logits of a sequence are computed again in the backward pass.
  """
  inputs, targets = tokens[:, :-1], tokens[:, 1:]
  x = params["tokens"][inputs] + params["positions"]
  stacked = {
    name: array
    for name, array in params.items()
    if name not in ("tokens", "positions", "norm_final")
  }
  step = jax.checkpoint(lambda x, layer: (block(x, layer), None))
  x, _ = lax.scan(step, x, stacked)
  x = norm(x, params["norm_final"])

  @jax.checkpoint
  def of_sequence(hidden, target):
    logits = (hidden @ params["tokens"].T).astype(jnp.float32)
    scores = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(scores, target[:, None], -1).mean()

  return lax.map(lambda pair: of_sequence(*pair), (x, targets))


def tokens_of(step: jax.Array) -> jax.Array:
  """Random sequences, the same ones for the same step."""
  shape = _BATCH_SIZE.value, _CONTEXT.value + 1
  key = jax.random.fold_in(jax.random.key(1), step)
  return jax.random.randint(key, shape, 0, _VOCABULARY.value)


def objective(hypers: dict, weights: jax.Array, params: dict) -> Any:
  """Held-out loss after training, and what the run keeps."""
  # float32 rounds 1 - b up.
  floors = {
    "first_moment": 0.9 - 1e-6,
    "second_moment": 0.999 - 1e-6,
    "params": 1 - 1e-4,
  }
  optimizer = revmom.adamw(
    hypers["learning_rate"],
    b1=hypers["b1"],
    b2=hypers["b2"],
    weight_decay=hypers["weight_decay"],
    grid=revmom.Grid(floors=floors),
  )
  optimizer = revmom.clipped(optimizer, 1.0)

  def loss_fn(params, batch):
    tokens, weights = batch
    return jnp.mean(weights * losses(params, tokens))

  run = revmom.train(
    loss_fn,
    optimizer,
    params,
    lambda t: (tokens_of(t), weights[t]),
    num_steps=_STEPS.value,
  )
  held_out = losses(run.params, tokens_of(jnp.asarray(-1))).mean()
  return held_out, run.losses


def main(argv: list[str]) -> None:
  """Compiles, measures, prints."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}; all options are flags")
  steps = _STEPS.value
  hypers = {
    "learning_rate": jnp.full(steps, 6e-4),
    "b1": jnp.full(steps, 0.9),
    "b2": jnp.full(steps, 0.999),
    "weight_decay": jnp.full(steps, 0.1),
  }
  weights = jnp.ones((steps, _BATCH_SIZE.value))
  shapes = jax.eval_shape(init, jax.random.key(0))
  size = sum(int(np.prod(leaf.shape)) for leaf in shapes.values())
  gradient = jax.value_and_grad(objective, (0, 1), has_aux=True)
  begin = time.perf_counter()
  compiled = jax.jit(gradient).lower(hypers, weights, shapes).compile()
  result: dict[str, Any] = {
    "environment": interleaved.environment(),
    "parameters": size,
    "steps": steps,
    "batch": [_BATCH_SIZE.value, _CONTEXT.value],
    "compile_s": round(time.perf_counter() - begin, 1),
    "integer_bytes": integer_bytes(hypers, shapes),
    "stored_trajectory_bytes": 12 * size * steps,
  }
  memory = compiled.memory_analysis()
  for name in ("temp", "argument", "output"):
    result[f"{name}_bytes"] = int(getattr(memory, f"{name}_size_in_bytes"))
  one = jax.jit(jax.grad(lambda p: losses(p, tokens_of(jnp.asarray(0))).mean()))
  step_memory = one.lower(shapes).compile().memory_analysis()
  result["gradient_temp_bytes"] = int(step_memory.temp_size_in_bytes)
  if _RUN.value:
    result |= run(compiled, hypers, weights)
  text = table(result)
  print(text)
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(json.dumps(result, indent=1) + "\n")
  if _DOC.value:
    report.insert(pathlib.Path(_DOC.value), text, "gpt2")


def integer_bytes(hypers: dict, shapes: dict) -> int:
  """Of parameters, moments and buffers of the whole run."""
  optimizer = revmom.adamw(
    np.asarray(hypers["learning_rate"]), b1=0.9, b2=0.999, weight_decay=0.1
  )
  state = jax.eval_shape(lambda p: optimizer.init(p, _STEPS.value), shapes)
  return sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.leaves)
  )


def run(compiled: Any, hypers: dict, weights: jax.Array) -> dict[str, Any]:
  """Runs the hypergradient; it is finite only if the reversal was exact."""
  params = jax.jit(init)(jax.random.key(0))
  begin = time.perf_counter()
  (value, path), (bars, weights_bar) = jax.block_until_ready(
    compiled(hypers, weights, params)
  )
  seconds = time.perf_counter() - begin
  leaves = [*jax.tree.leaves(bars), weights_bar]
  return {
    "seconds_per_step": seconds / _STEPS.value,
    "first_loss": float(path[0]),
    "last_loss": float(path[-1]),
    "held_out_loss": float(value),
    "exact": all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves),
  }


def table(result: dict[str, Any]) -> str:
  """Markdown."""
  rows = [
    ("parameters", f"{result['parameters']:,}"),
    ("steps; batch", f"{result['steps']}; {result['batch']}"),
    ("stored trajectory", report.byte_count(result["stored_trajectory_bytes"])),
    ("integers and buffers", report.byte_count(result["integer_bytes"])),
    (
      "temporary memory, forward and hypergradient",
      report.byte_count(result["temp_bytes"]),
    ),
    (
      "of one gradient alone, checkpointed",
      report.byte_count(result["gradient_temp_bytes"]),
    ),
    ("compilation", f"{result['compile_s']} s"),
  ]
  if "exact" in result:
    rows += [
      ("reversal", "exact" if result["exact"] else "FAILED"),
      ("seconds a step", f"{result['seconds_per_step']:.4f}"),
      ("loss", f"{result['first_loss']:.3f} -> {result['last_loss']:.3f}"),
    ]
  return (
    report.measured_on(result["environment"])
    + "\n\n"
    + report.table(("what", "measured"), rows)
  )


if __name__ == "__main__":
  app.run(main)
