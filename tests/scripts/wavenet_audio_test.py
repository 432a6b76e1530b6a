"""The sounds, and the script as users run it."""

import numpy as np
import pytest
from scipy.io import wavfile

SMALL = (
  "--dilations=1,2",
  "--residual=4",
  "--skip=6",
  "--window=50",
  "--steps=10",
  "--seconds=0.02",
)


@pytest.fixture(scope="module")
def clips(load):
  return load("audio.recordings")


def write_digits(folder, rate=8000, dtype=np.int16):
  """Two files of each digit, of different lengths."""
  folder.mkdir()
  rng = np.random.default_rng(0)
  for digit in range(10):
    for index, length in ((0, 130), (5, 170 + digit)):
      samples = (8000 * rng.uniform(-1, 1, length)).astype(dtype)
      wavfile.write(folder / f"{digit}_ann_{index}.wav", rate, samples)
  (folder / "readme.wav").write_text("not one of them")
  return folder


def test_a_damaged_file_is_named(clips, tmp_path):
  """Cut short anywhere, or with another byte in its header."""
  path = tmp_path / "7_ann_0.wav"
  wavfile.write(path, 8000, np.arange(60, dtype=np.int16))
  whole = path.read_bytes()
  other = [bytes([*whole[:k], 99, *whole[k + 1 :]]) for k in range(40)]
  accepted = 0
  for content in [whole[:size] for size in range(len(whole))] + other:
    path.write_bytes(content)
    try:
      sound = clips.read(path)
    except ValueError as error:
      assert path.name in str(error) and "\n" not in str(error)
    else:  # the size of all, or bytes a second, which nobody needs
      np.testing.assert_array_equal(sound, np.arange(60) / 32768)
      accepted += 1
  assert accepted < 10
  wavfile.write(path, 8000, np.zeros(0, np.int16))
  with pytest.raises(ValueError, match="7_ann_0.wav has no sound"):
    clips.read(path)


def test_windows_have_their_context(clips):
  sounds = [np.full(5, 0.5), np.full(2, -0.5)]
  windows = clips.windows_of(clips.Clips(sounds, np.array([7, 3])), 3, 4)
  take = lambda clip, offset: (
    np.asarray(part[0])
    for part in clips.take(
      windows, np.array([clip]), np.array([offset]), context=3, window=4
    )
  )
  high, silence, low = 239, clips.SILENCE, 16
  codes, inside, label = take(0, 0)
  assert codes[:, 0].tolist() == [silence] * 3 + [high] * 4
  assert inside.all() and label == 7
  codes, inside, _ = take(0, 4)
  assert codes[:4, 0].tolist() == [high] * 4
  assert inside.tolist() == [True, False, False, False]
  codes, inside, label = take(1, 0)
  assert codes[:, 0].tolist() == [silence] * 3 + [low] * 2 + [silence] * 2
  assert inside.tolist() == [True, True, False, False] and label == 3
  codes, inside, _ = take(1, -3)
  assert codes[:, 0].tolist() == [silence] * 6 + [low]
  assert inside.tolist() == [False, False, False, True]


def test_strings_have_their_pitch_and_the_noise_its_bits(clips):
  data = clips.synthetic(seed=1, per_class=1)
  assert len(data.train.sounds) == 10 and len(data.test.sounds) == 50
  for sound, clean, label in zip(
    data.test.sounds, data.test.clean, data.test.labels, strict=True
  ):
    assert np.abs(sound).max() < 1
    spectrum = np.abs(np.fft.rfft(clean * np.hanning(len(clean)), 8 * 8000))
    harmonic = spectrum.argmax() / 8 / clips.pitch(label)
    assert abs(harmonic - round(harmonic)) < 0.05 and round(harmonic) in (1, 2)
  # Bits of Gaussian noise, of deviation s, in steps of size d: about
  # log2(s sqrt(2 pi e) / d) where d is small; the steps are those of the code.
  noise = np.concatenate(data.test.sounds) - np.concatenate(data.test.clean)
  assert abs(noise.std() - 0.003) < 1e-4
  size = np.abs(np.concatenate(data.test.clean))
  steps = (size + 1 / 255) * np.log(256) * 2 / 255
  fine = steps < 0.002
  assert fine.any() and not fine.all()
  quiet = np.log2(0.003 * np.sqrt(2 * np.pi * np.e) / steps[fine]).mean()
  assert 0 < clips.least_bits(data.test) < quiet + 0.1


@pytest.mark.slow
def test_learns_resumes_and_writes(script, tmp_path):
  script = script.at(tmp_path)
  done = script.run(*SMALL)
  assert done.stderr == ""  # no progress bar: it is not a terminal
  assert "bits a sample; unigram" in done.stdout
  result, rows = script.result(), script.rows()
  assert result["receptive_field"] == 5  # 1 + 1 + 1 + 2
  assert 0 < result["least_bits"] < result["unigram_bits"] < 8
  assert 0 < result["test_bits"] < 20
  assert [int(row["step"]) for row in rows] == list(range(10))
  assert sum(bool(row["test_bits"]) for row in rows) == 5
  for name in ("generated.wav", "completed.wav"):
    rate, samples = wavfile.read(tmp_path / name)
    assert rate == 8000 and samples.dtype == np.int16
    assert samples.shape == (10 * (160 + 800),)
    clips = samples.reshape(10, -1)
    assert clips[:, :160].std() > 0 and not clips[:, 160:].any()
  assert script.figures() >= {"loss", "spectrogram"}

  generated = (tmp_path / "generated.wav").read_bytes()
  script.resume(*SMALL)  # after the fourth of five checkpoints
  resumed = script.result()
  assert resumed["resumed_from"] == 8
  assert resumed["test_bits"] == result["test_bits"]
  assert (tmp_path / "generated.wav").read_bytes() == generated
  assert "--seed=0 there, --seed=1 now" in script.fails(*SMALL, "--seed=1")


@pytest.mark.slow
def test_wav_files(script, tmp_path):
  folder = write_digits(tmp_path / "digits")
  script = script.at(tmp_path / "out")
  flags = *SMALL, f"--data_dir={folder}"
  done = script.run(*flags, "--conditional=mixture_of_logistics")
  assert "strings" not in done.stdout
  result = script.result()
  assert result["data"] == "digits" and "least_bits" not in result
  # White noise is as wide as its codes are many.
  assert 6.5 < result["unigram_bits"] < 8
  _, completed = wavfile.read(script.workdir / "completed.wav")
  _, first = wavfile.read(folder / "0_ann_0.wav")
  # Its first half is given, up to companding.
  np.testing.assert_allclose(completed[:65], first[:65], rtol=0.03, atol=8)
  assert not np.allclose(completed[65:130], first[65:130], rtol=0.5)


def test_files_are_checked(clips, tmp_path):
  data = clips.load(str(write_digits(tmp_path / "good")))
  assert len(data.train.sounds) == len(data.test.sounds) == 10
  assert data.train.labels.tolist() == list(range(10))
  assert [len(sound) for sound in data.train.sounds] == list(range(170, 180))
  with pytest.raises(ValueError, match="16000 samples a second"):
    clips.load(str(write_digits(tmp_path / "fast", rate=16000)))
  with pytest.raises(ValueError, match="int32"):
    clips.load(str(write_digits(tmp_path / "wide", dtype=np.int32)))
  (tmp_path / "empty").mkdir()
  with pytest.raises(FileNotFoundError, match="0 files for training"):
    clips.load(str(tmp_path / "empty"))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--dilation=3"], "Did you mean: dilations"),
    (["--dilations=1,two"], "--dilations=1,two: expected integers between"),
    (["--dilations=1,0"], "--dilations=1,0: expected integers between"),
    (["--conditional=gaussian"], "should be one of"),
  ],
)
def test_a_wrong_flag_is_named(script, flags, message):
  assert message in script.fails(*flags)
