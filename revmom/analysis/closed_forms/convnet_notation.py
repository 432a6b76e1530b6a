"""Convolutional networks as lists: "Conv3-64, maxpool, FC-1000".

The notation is that of Simonyan & Zisserman, "Very deep convolutional networks
for large-scale image recognition" (2015), Table 1: Conv3-64 is a convolution
with 64 filters of 3 x 3 and stride 1, maxpool takes the largest of 2 x 2 with
stride 2, and FC-1000 is a layer of 1000 units that see all of what is before.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

VGG11 = (
  "Conv3-64 / maxpool / Conv3-128 / maxpool / Conv3-256 / Conv3-256 / maxpool "
  "/ Conv3-512 / Conv3-512 / maxpool / Conv3-512 / Conv3-512 / maxpool / "
  "FC-4096 / FC-4096 / FC-1000"
)
VGG16 = (
  "Conv3-64 / Conv3-64 / maxpool / Conv3-128 / Conv3-128 / maxpool / "
  "Conv3-256 / Conv3-256 / Conv3-256 / maxpool / Conv3-512 / Conv3-512 / "
  "Conv3-512 / maxpool / Conv3-512 / Conv3-512 / Conv3-512 / maxpool / "
  "FC-4096 / FC-4096 / FC-1000"
)
VGG19 = (
  "Conv3-64 / Conv3-64 / maxpool / Conv3-128 / Conv3-128 / maxpool / "
  "Conv3-256 / Conv3-256 / Conv3-256 / Conv3-256 / maxpool / Conv3-512 / "
  "Conv3-512 / Conv3-512 / Conv3-512 / maxpool / Conv3-512 / Conv3-512 / "
  "Conv3-512 / Conv3-512 / maxpool / FC-4096 / FC-4096 / FC-1000"
)

_TOKEN = re.compile(
  r"conv(?P<window>[1-9]\d*)-(?P<filters>[1-9]\d*)|fc-(?P<units>[1-9]\d*)"
  r"|(?P<pool>maxpool)",
  re.IGNORECASE,
)


class Layer(NamedTuple):
  """One layer of a network.

  Attributes:
    token: as it was written.
    shape: of its output, (height, width, channels), or (units,).
    weights: without biases.
    biases: one for each filter or unit.
    multiply_adds: for one image, without those with the padding.
  """

  token: str
  shape: tuple[int, ...]
  weights: int
  biases: int
  multiply_adds: int

  @property
  def parameters(self) -> int:
    return self.weights + self.biases


def layers(
  notation: str,
  shape: tuple[int, int, int] = (224, 224, 3),
  padding: int = 1,
) -> list[Layer]:
  """The layers of a network, their output shapes and parameters.

  Args:
    notation: tokens with commas, slashes or line breaks in between, in upper
      or lower case.
    shape: of an image, (height, width, channels).
    padding: rows and columns of zeros around what a convolution sees.

  Raises:
    ValueError: a token is none of these three, or what comes before it leaves
      nothing that it could work on.

  >>> for layer in layers("Conv3-64 / maxpool / FC-1024"):
  ...   print(layer.token, layer.shape, layer.parameters)
  Conv3-64 (224, 224, 64) 1792
  maxpool (112, 112, 64) 0
  FC-1024 (1024,) 822084608
  >>> sum(layer.parameters for layer in layers(VGG16))
  138357544
  """
  found: list[Layer] = []
  current: tuple[int, ...] = shape
  for number, token in enumerate(_tokens(notation), 1):
    match = _TOKEN.fullmatch(token)
    if match is None:
      raise _error(
        number, token, "write ConvK-N, maxpool or FC-N, with K and N above 0"
      )
    if match["units"]:
      layer = _dense(token, current, int(match["units"]))
    elif len(current) == 1:
      raise _error(number, token, "it comes after FC, which leaves no image")
    elif match["pool"]:
      layer = _pool(number, token, current)
    else:
      window, filters = int(match["window"]), int(match["filters"])
      layer = _convolution(number, token, current, window, filters, padding)
    found.append(layer)
    current = layer.shape
  return found


def _tokens(notation: str) -> list[str]:
  tokens = [token.strip() for token in re.split(r"[,/\n]", notation)]
  if len(tokens) > 1 and not tokens[-1]:
    tokens.pop()
  return tokens


def _error(number: int, token: str, what: str) -> ValueError:
  return ValueError(f"Layer {number}, {token!r}: {what}.")


def _dense(token: str, shape: tuple[int, ...], units: int) -> Layer:
  weights = math.prod(shape) * units
  return Layer(token, (units,), weights, units, weights)


def _pool(number: int, token: str, shape: tuple[int, ...]) -> Layer:
  height, width, channels = shape
  if min(height, width) < 2:
    raise _error(
      number, token, f"an image of {height} x {width} is too small for 2 x 2"
    )
  return Layer(token, (height // 2, width // 2, channels), 0, 0, 0)


def _convolution(
  number: int,
  token: str,
  shape: tuple[int, ...],
  window: int,
  filters: int,
  padding: int,
) -> Layer:
  *image, channels = shape
  sizes = [size + 2 * padding - window + 1 for size in image]
  if min(sizes) < 1:
    raise _error(
      number,
      token,
      f"an image of {image[0]} x {image[1]} with padding {padding} is smaller "
      f"than {window} x {window}",
    )
  meetings = math.prod(_meetings(size, window, padding) for size in image)
  weights = window**2 * channels * filters
  return Layer(
    token,
    (*sizes, filters),
    weights,
    filters,
    meetings * channels * filters,
  )


def _meetings(size: int, window: int, padding: int) -> int:
  """Pairs of a place of the window and one of the image, along an axis."""
  results = range(size + 2 * padding - window + 1)
  return sum(
    0 <= place + tap - padding < size
    for place in results
    for tap in range(window)
  )


def table(found: Sequence[Layer]) -> str:
  """The layers, a line each, and their sums.

  >>> print(table(layers("Conv3-4, maxpool, FC-10", (8, 8, 3))))
  layer                 output         weights      biases    multiply-adds
  Conv3-4            8 x 8 x 4             108           4            5,808
  maxpool            4 x 4 x 4               0           0                0
  FC-10                     10             640          10              640
  sum                                      748          14            6,448
  parameters: 762
  """
  header = (
    f"{'layer':12}{'output':>16}{'weights':>16}{'biases':>12}"
    f"{'multiply-adds':>17}"
  )
  rows = [
    f"{layer.token:12}{' x '.join(map(str, layer.shape)):>16}"
    f"{layer.weights:16,}{layer.biases:12,}{layer.multiply_adds:17,}"
    for layer in found
  ]
  weights = sum(layer.weights for layer in found)
  biases = sum(layer.biases for layer in found)
  adds = sum(layer.multiply_adds for layer in found)
  total = f"{'sum':28}{weights:16,}{biases:12,}{adds:17,}"
  return "\n".join([header, *rows, total, f"parameters: {weights + biases:,}"])
