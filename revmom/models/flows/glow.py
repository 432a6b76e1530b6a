"""Glow (Kingma & Dhariwal 2018)."""

from revmom.models.flows.actnorm import actnorm
from revmom.models.flows.bijection import Bijection, chain
from revmom.models.flows.conditioner import Conditioner, convnet
from revmom.models.flows.coupling import additive, affine, sigmoid_log_scale
from revmom.models.flows.flow import Flow
from revmom.models.flows.linear import linear
from revmom.models.flows.multi_scale import multi_scale, squeeze
from revmom.models.flows.reversible import stacked
from revmom.models.sizes import at_least


def glow_step(
  conditioner: Conditioner, *, volume_preserving: bool = False
) -> Bijection:
  """Actnorm, invertible 1x1 convolution, coupling: table 1.

  Args:
    conditioner: of images.
    volume_preserving: an additive coupling in place of an affine one.

  Returns:
    A bijection of images [H, W, C] with C >= 2.
  """
  if volume_preserving:
    coupling = additive(conditioner)
  else:
    coupling = affine(conditioner, log_scale=sigmoid_log_scale)
  return chain(actnorm(event_ndim=3), linear(event_ndim=3), coupling)


def glow(
  levels: int = 3,
  depth: int = 32,
  hidden: int = 512,
  *,
  volume_preserving: bool = False,
  reversible: bool = True,
) -> Flow:
  """Glow: levels of squeeze and `depth` steps, half of the channels taken out.

  Kingma & Dhariwal (2018), figure 2, with the sizes of their CIFAR-10 model as
  defaults.  As in their code the noise that a level gives is Gaussian given
  the half that goes on: mean and scale are a convolution that starts at zero,
  which is an affine coupling.

  Args:
    levels: L; each halves the sides of the image.
    depth: K, steps of a level.
    hidden: channels inside each coupling's network.
    volume_preserving: additive couplings in place of affine ones.
    reversible: `reversible_stack`, with activation memory that does not grow
      with depth, in place of `stack`, whose gradients take a quarter less
      time; parameters are the same.

  Returns:
    A flow of images [*batch, H, W, C] in floats, see `images`.

  Raises:
    ValueError: from its functions, if H or W is not divisible by 2^levels.

  >>> import jax
  >>> flow = glow(levels=2, depth=2, hidden=4)
  >>> x = jax.random.uniform(jax.random.key(0), (2, 4, 4, 1))
  >>> params = jax.jit(flow.init)(jax.random.key(1), x)
  >>> noise, log_det = jax.jit(flow.forward_and_log_det)(params, x)
  >>> [z.shape for z in noise], log_det.shape
  ([(2, 2, 2, 2), (2, 1, 1, 8)], (2,))
  """
  at_least(1, levels=levels)
  step = glow_step(convnet(hidden), volume_preserving=volume_preserving)
  steps = chain(squeeze(), stacked(step, depth, reversible))
  conditional = affine(convnet(kernels=(3,)))
  early = chain(steps, conditional)
  return Flow(multi_scale(*[early] * (levels - 1), steps))
