"""Texts read from files that the tests write."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def texts(load):
  return load("shared.texts")


def decoded(corpus, part):
  return [corpus.vocabulary[token] for token in part.tokens]


def write(folder, **parts):
  for part, text in parts.items():
    (folder / f"wiki.{part}.tokens").write_text(text, encoding="utf-8")


def test_the_default_is_english(texts):
  corpus = texts.load(None, None, "character")
  assert len(corpus.train.tokens) > 200_000
  text = "".join(decoded(corpus, corpus.test))
  assert " the " in text and "\n" not in text
  for part in corpus[1:]:
    assert len(part.tokens) == part.characters
    assert part.tokens.dtype == np.int32


def test_a_file_is_cut_into_consecutive_parts(texts, tmp_path):
  path = tmp_path / "text.txt"
  path.write_text("ab\n" * 400 + "é" * 60 + "b" * 40, encoding="utf-8")
  corpus = texts.load(str(path), None, "character")
  # Of 1300 characters: 1170, 65 and 65; all but the last 40 of é are beyond.
  sizes = [len(part.tokens) for part in corpus[1:]]
  assert sizes == [1170, 65, 65]
  assert corpus.vocabulary[1:] == ("\n", "a", "b")
  assert decoded(corpus, corpus.train) == list("ab\n" * 390)
  unknown = corpus.vocabulary[0]
  expected = "ab\n" * 10 + unknown * 60 + "b" * 40
  held_out = [*corpus.validation.tokens, *corpus.test.tokens]
  assert "".join(corpus.vocabulary[i] for i in held_out) == expected


def test_words_of_a_folder(texts, tmp_path):
  write(tmp_path, train="a b\n\nb a once\n", valid="b c\n", test="a")
  corpus = texts.load(None, str(tmp_path), "word")
  # "once" is in the training text only once, and "c" not at all.
  assert corpus.vocabulary == ("<unk>", "<eos>", "a", "b")
  assert decoded(corpus, corpus.train) == (
    "a b <eos> <eos> b a <unk> <eos>".split()
  )
  assert decoded(corpus, corpus.validation) == ["b", "<unk>", "<eos>"]
  assert corpus.validation.characters == 4
  assert corpus.test.characters == 1
  assert texts.join(["a", "b", "<eos>", "b"], "word") == "a b \nb"
  assert texts.join(["a", "b"], "character") == "ab"


def test_a_text_with_unknown_tokens_keeps_all_others(texts, tmp_path):
  write(tmp_path, train="a <unk> b", valid="a", test="b")
  corpus = texts.load(None, str(tmp_path), "word")
  assert corpus.vocabulary == ("<unk>", "<eos>", "a", "b")
  assert decoded(corpus, corpus.train) == ["a", "<unk>", "b", "<eos>"]


def test_what_does_not_fit_is_named(texts, tmp_path):
  write(tmp_path, train="a", valid="a")
  with pytest.raises(ValueError, match="'test' in its name; it has none"):
    texts.load(None, str(tmp_path), "word")
  write(tmp_path, test="")
  with pytest.raises(ValueError, match=r"\[1, 1, 0\] characters"):
    texts.load(None, str(tmp_path), "word")
  (tmp_path / "test.txt").write_text("a")
  with pytest.raises(ValueError, match="it has test.txt, wiki.test.tokens"):
    texts.load(None, str(tmp_path), "word")
  with pytest.raises(ValueError, match="is not a folder"):
    texts.load(None, str(tmp_path / "absent"), "word")
  with pytest.raises(ValueError, match="give one file, or a folder"):
    texts.load("a.txt", str(tmp_path), "word")
  with pytest.raises(FileNotFoundError):
    texts.load(str(tmp_path / "absent.txt"), None, "word")
  (tmp_path / "bytes.bin").write_bytes(b"\xff\xfe\x00")
  with pytest.raises(ValueError, match="--text=.*bytes.bin is not UTF-8"):
    texts.load(str(tmp_path / "bytes.bin"), None, "word")
