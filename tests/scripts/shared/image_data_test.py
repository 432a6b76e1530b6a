"""Datasets read from files that the tests write."""

import gzip
import struct

import numpy as np
import pytest


@pytest.fixture(scope="module")
def image_data(load):
  return load("shared.image_data")


def idx(array):
  header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
  return header + array.tobytes()


def write_folder(folder, compress, dot=False):
  """Twelve images for training and four for tests, and what was written."""
  rng = np.random.default_rng(0)
  written = {}
  for prefix, count in (("train", 12), ("t10k", 4)):
    images = rng.integers(0, 256, (count, 5, 3), np.uint8)
    labels = rng.integers(0, 10, count, np.uint8)
    written[prefix] = images, labels
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
      name = f"{prefix}-{name}-ubyte"
      name = name.replace("-idx", ".idx") if dot else name
      content = idx(array)
      if compress:
        name, content = name + ".gz", gzip.compress(content)
      (folder / name).write_bytes(content)
  return written


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dot", [False, True])
def test_idx_files(image_data, tmp_path, compress, dot):
  written = write_folder(tmp_path, compress, dot)
  data = image_data.load("mnist", str(tmp_path))
  images, labels = written["train"]
  np.testing.assert_array_equal(data.train_labels, labels[:10])
  np.testing.assert_array_equal(data.validation_labels, labels[10:])
  np.testing.assert_array_equal(data.test_labels, written["t10k"][1])
  found = np.concatenate([data.train_images, data.validation_images])
  np.testing.assert_array_equal(np.round(found * 255), images)
  assert {a.dtype for a in data} == {np.dtype("float32"), np.dtype("int32")}


def test_digits(image_data):
  data, again = image_data.load("digits"), image_data.load("digits")
  for a, b in zip(data, again, strict=True):
    np.testing.assert_array_equal(a, b)
  assert data.train_images.shape == (1197, 8, 8)
  assert data.train_images.min() == 0 and data.train_images.max() == 1
  assert len(data.validation_labels) == len(data.test_labels) == 300
  assert set(data.test_labels) == set(range(10))


def test_flags_that_do_not_fit(image_data, tmp_path):
  with pytest.raises(ValueError, match="digits, mnist"):
    image_data.load("cifar")
  with pytest.raises(ValueError, match="needs --data_dir"):
    image_data.load("mnist")
  with pytest.raises(ValueError, match="come with scikit-learn"):
    image_data.load("digits", str(tmp_path))
  with pytest.raises(FileNotFoundError, match="not a folder"):
    image_data.load("mnist", str(tmp_path / "absent"))
  with pytest.raises(FileNotFoundError, match="no train-images-idx3-ubyte"):
    image_data.load("mnist", str(tmp_path))


@pytest.mark.parametrize(
  ("spoil", "message"),
  [
    (lambda content: content[:-1], "cut short"),
    (lambda content: content[:2], "not an idx file"),
    (lambda content: b"\1" + content[1:], "not an idx file"),
    (lambda content: content[:2] + b"\x0d" + content[3:], "unsigned bytes"),
    (lambda content: gzip.compress(content)[:-9], "damaged gzip"),
    (lambda content: idx(np.zeros(7, np.uint8)), "expected images"),
  ],
)
def test_damaged_files(image_data, tmp_path, spoil, message):
  write_folder(tmp_path, compress=False)
  path = tmp_path / "train-images-idx3-ubyte"
  path.write_bytes(spoil(path.read_bytes()))
  with pytest.raises(ValueError, match=message):
    image_data.load("idx", str(tmp_path))


def test_damage_of_any_byte_is_an_error_that_names_the_file(
  image_data, tmp_path
):
  rng = np.random.default_rng(0)
  whole = gzip.compress(idx(rng.integers(0, 9, (12, 5, 3), np.uint8)))
  path = tmp_path / "train.gz"
  good = 0
  for _ in range(300):
    content = bytearray(whole)
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(bytes(content[: rng.integers(1, 2 * len(content))]))
    try:
      image_data.read_idx(path)
      good += 1  # a header of gzip has bytes without a meaning
    except ValueError as error:
      assert str(path) in str(error)
  assert good < 30
  # Axes whose product is 2^64, and as many as a byte can say.
  for axes in ([2**16] * 4, [1] * 255):
    path.write_bytes(struct.pack(f">4B{len(axes)}I", 0, 0, 8, len(axes), *axes))
    with pytest.raises(ValueError, match="train.gz"):
      image_data.read_idx(path)


def test_files_that_do_not_go_together(image_data, tmp_path):
  def load(train, test, labels=(0, 1), sizes=(3, 3)):
    for prefix, count, size in (("train", train, 3), ("t10k", test, sizes[1])):
      images = np.zeros((count, sizes[0], size), np.uint8)
      classes = np.arange(count, dtype=np.uint8) % 3
      if prefix == "t10k":
        classes = np.resize(np.array(labels, np.uint8), count)
      for name, array in (("images-idx3", images), ("labels-idx1", classes)):
        (tmp_path / f"{prefix}-{name}-ubyte").write_bytes(idx(array))
    return image_data.load("idx", str(tmp_path))

  load(12, 4)
  with pytest.raises(ValueError, match="0 test images; it needs 6 and 1"):
    load(12, 0)
  with pytest.raises(ValueError, match="5 training images"):
    load(5, 4)
  with pytest.raises(ValueError, match="a test label of 3, .* trained is 2"):
    load(12, 4, labels=(0, 3))
  with pytest.raises(ValueError, match="shape .3, 4. and training"):
    load(12, 4, sizes=(3, 4))
