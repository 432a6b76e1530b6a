r"""Gradient-based hyperparameter optimization through reversible learning.

  python scripts/maclaurin2015.py --figure=11
  python scripts/maclaurin2015.py --figure=11 --dataset=mnist --data_dir=DIR \
    --workdir=out/figure_11
  python scripts/maclaurin2015.py --figure=10 --dataset=omniglot --data_dir=DIR

Maclaurin, Duvenaud & Adams (2015), figure by figure.  Where their text and
their code differ, this follows the code.  Every figure prints a table of the
published and the measured values; without data the digits of scikit-learn
stand in for MNIST, and only shapes compare.  Without flags, figure 11 on the
digits, expect a loss of 0.0450 at a log rate of 0.50 and a derivative of
-0.0662; derivatives that equal central differences to 2e-5 below a log rate of
1.45, and chaos from 1.60.  It takes half a minute.

On the first 10 000 images of MNIST's training file, on 2 CPU cores, expect
(published values in parentheses; those of 2 and 8 are read off plots):

   1  2 s. Two weights; needs no data. Losses before the last step 414.85,
      376.70, 347.38 (the same), after it 395.30, 356.56, 356.35 (395.30,
      356.57, 356.34).
   2  40 s. Learned schedules and scales, also figures 3, 4, 6 and 7: training
      loss 0.57 -> 0.15 (0.53 -> 0.12), validation 0.60 -> 0.25 (0.60 -> 0.24),
      test 0.60 -> 0.24 (0.59 -> 0.25), of one seed as published.
   5  40 s. The first hypergradient, a mean over 50 seeds; on the digits, of a
      loss of 0.82, it makes all rates of weights larger.
   8  12 s. A penalty for every weight: training 0.91 -> 0.51 (0.91 -> 0.51),
      validation 0.73 -> 0.39 (0.76 -> 0.425), test 0.66 -> 0.38 (0.705 ->
      0.45).
   9  5 s. Learned training images: validation 2.32 -> 0.42 (2.3 -> 0.43), test
      2.32 -> 0.49 (2.3 -> 0.50).
  10  2 minutes. Ten alphabets, 15 characters of each of the first five of
      images_background_small1: test loss of separate networks 1.63 (1.34), of
      a tied first layer 1.42 (1.25), of learned sharing 1.44 (1.13).  With
      all characters, --characters=55, 8 minutes: 2.00, 1.89 and 1.74.  Which
      five the authors take is not known here.  Running it again in the same
      --workdir goes on from the last meta iteration.
  11  50 s. Chaos: losses as stored by the authors to 3e-8 of their values,
      derivatives equal to central differences to 2e-6 (6.8e-6) below a log
      rate of 1.45.  Chaos begins at the first point after it, 1.50 (1.48);
      --points=112 takes 2.5 minutes and finds 1.47, --points=1000 some 15
      minutes.
"""

import functools
from collections.abc import Callable

import jax

from maclaurin import chaos, losses, schedules, sharing, toy
from maclaurin.common import Config
from shared import image_data
from shared.reproduction import Outcome, reproduce
from shared.settings import launch

_FIGURES: dict[str, Callable[..., Outcome]] = {
  "1": toy.figure_1,
  "2": schedules.figure_2,
  "5": schedules.figure_5,
  "8": losses.figure_8,
  "9": losses.figure_9,
  "10": sharing.figure_10,
  "11": chaos.figure_11,
}
# Flags that mean something to some figures only.
_GOES_WITH = {
  "meta_steps": ("1", "2", "8", "9", "10"),
  "seeds": ("5",),
  "points": ("11",),
  "alphabets": ("10",),
  "characters": ("10",),
}


def check(config: Config) -> None:
  """Raises ValueError for flags that don't go together."""
  for name, figures in _GOES_WITH.items():
    if getattr(config, name) is not None and config.figure not in figures:
      others = [k for k, v in _GOES_WITH.items() if config.figure in v]
      named = [f"--{other}" for other in (*others, "steps")]
      raise ValueError(
        f"--{name} is for --figure={' or '.join(figures)}; figure "
        f"{config.figure} takes {', '.join(named)}."
      )
  idx = config.dataset in image_data.IDX
  if config.figure == "10" and idx:
    raise ValueError(
      "figure 10 takes --dataset=omniglot or digits, not "
      f"--dataset={config.dataset}."
    )
  if config.figure != "10" and config.dataset == "omniglot":
    raise ValueError("--dataset=omniglot is for --figure=10.")
  if config.dataset == "digits" and config.data_dir is not None:
    raise ValueError(
      f"--data_dir={config.data_dir} holds no digits: they come with "
      "scikit-learn.  Leave it out, or give --dataset=mnist or omniglot."
    )
  if config.dataset != "omniglot":
    for name in ("alphabets", "characters"):
      if getattr(config, name) is not None:
        raise ValueError(f"--{name} needs --dataset=omniglot.")


def run(config: Config, workdir: str | None = None) -> str:
  """Makes a figure, writes and reports it.

  Raises:
    ValueError: flags that don't go together, or data that don't fit.
    FloatingPointError: a loss or a hypergradient was not finite.
  """
  check(config)
  about = {
    "figure": config.figure,
    "dataset": config.dataset,
    "seed": config.seed,
  }
  if config.figure == "11":  # before anything is computed
    jax.config.update("jax_enable_x64", True)
  make = functools.partial(_FIGURES[config.figure], config)
  resumes = config.figure == "10"
  return reproduce(make if resumes else lambda _: make(), about, workdir)


if __name__ == "__main__":
  launch(Config, run)
