"""What calibrates is not evaluated, whatever file, format or line length it comes in; and texts of one line split."""

import gzip
import json
import random
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from calibration_cases import byte_tokenizer, numbered_paragraphs
from hypothesis import example, given, settings
from hypothesis import strategies as st

from calibration import calibration_windows, evaluation_windows
from calibration.overlap import CalibrationText, without
from calibration.paragraphs import Units, is_held_out, normalised, paragraphs, share, units_for
from calibration.passages import LONGEST_PASSAGE, SHORTEST_PASSAGE, passages
from calibration.text_files import documents
from calibration.texts import calibration_text, evaluation_text
from core.errors import DataError

T = 33


def sentence_paragraphs(count: int, seed: int = 0, sentences: int = 3) -> list[str]:
    """Paragraphs of sentences, each of which begins with a number of its own and is long enough to tell."""
    rng = random.Random(seed)
    words = ["layer", "weight", "token", "prune", "keep", "small", "large", "value", "array", "index"]
    numbers = iter(range(10**6))
    return [
        " ".join(f"No{seed}n{next(numbers)} " + " ".join(rng.choices(words, k=12)) + "." for _ in range(sentences))
        for _ in range(count)
    ]


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


FORMATS: dict[str, tuple[str, Callable[[list[str]], bytes]]] = {
    "paragraphs": ("a.txt", lambda texts: "\n\n".join(texts).encode()),
    "rows": ("a.jsonl", jsonl),
    "compressed": ("a.jsonl.gz", lambda texts: gzip.compress(jsonl(texts))),
    "narrow": ("narrow.txt", lambda texts: "\n\n".join(textwrap.fill(text, 50) for text in texts).encode()),
    "a line each": ("lines.txt", lambda texts: "\n".join(texts).encode()),
    "one line": ("line.txt", lambda texts: " ".join(texts).encode()),
    "wrapped whole": ("wrapped.txt", lambda texts: textwrap.fill(" ".join(texts), 61).encode()),
    "UTF-16": ("wide.txt", lambda texts: "\n\n".join(texts).encode("utf-16")),
    "turned round": ("turned.txt", lambda texts: "\n\n".join(reversed(texts)).encode()),
    "with more around": ("more.txt", lambda texts: "\n\n".join(["Before it.", *texts, "And after it."]).encode()),
}


def written(folder: Path, side: str, form: str, texts: list[str]) -> str:
    name, write = FORMATS[form]
    (folder / side).mkdir(exist_ok=True)
    (folder / side / name).write_bytes(write(texts))
    return str(folder / side / name)


def numbered(documents: list[str]) -> set[str]:
    """The numbers of the sentences that are in these documents, whole or in part."""
    words = (word for document in documents for word in document.split())
    return {word for word in words if word.startswith("No")}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 120),
    sentences=st.integers(1, 4),
    calibrates=st.sampled_from(list(FORMATS)),
    evaluated=st.sampled_from(list(FORMATS)),
)
@example(seed=0, count=1, sentences=1, calibrates="paragraphs", evaluated="a line each")
def test_no_sentence_is_on_both_sides_whatever_the_format(
    seed: int, count: int, sentences: int, calibrates: str, evaluated: str
) -> None:
    texts = sentence_paragraphs(count, seed, sentences)
    with tempfile.TemporaryDirectory() as folder:
        one = written(Path(folder), "calibration", calibrates, texts)
        other = written(Path(folder), "evaluation", evaluated, texts)
        drawn = list(calibration_text(one).documents)
        same = Path(one).read_bytes() == Path(other).read_bytes()  # one paragraph on one line is so in two formats
        if same and units_for(lambda: documents(Path(one))) is Units.TEXT:
            return  # too short to hold a part of it out
        read = list(evaluation_text(other, one).documents)
    # A held-out line may end in the middle of a sentence; its number stands at the beginning.
    if calibrates == evaluated == "wrapped whole":
        assert not {line for text in drawn for line in text.split("\n")} & {x for t in read for x in t.split("\n")}
    else:
        assert not numbered(drawn) & numbered(read)
    assert numbered(drawn) | numbered(read) <= numbered(texts)


def test_other_text_is_evaluated_whole_beside_shared_headings(tmp_path: Path) -> None:
    headings = ["Introduction", "See also", "References"]
    one, other = sentence_paragraphs(100, 1), sentence_paragraphs(100, 2)
    calibrates = written(tmp_path, "calibration", "paragraphs", [*headings, *one])
    text = evaluation_text(written(tmp_path, "evaluation", "paragraphs", [*headings, *other]), calibrates)
    assert list(text.documents) == ["\n\n".join([*headings, *other])]
    assert text.source.endswith("all of it")


def test_what_any_text_of_a_mixture_holds_is_left_out(tmp_path: Path) -> None:
    """The second one's copy in another format; the first one shares its file, so that its tenth is evaluated."""
    texts = sentence_paragraphs(400)
    one = written(tmp_path, "calibration", "paragraphs", texts)
    other = written(tmp_path, "copy", "rows", texts[:200])
    seen = numbered(list(calibration_text(one).documents)) | numbered(list(calibration_text(other).documents))
    read = numbered(list(evaluation_text(one, f"{one},{other},self").documents))
    assert read
    assert not read & seen


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    texts = sentence_paragraphs(400)
    calibrates = written(tmp_path, "calibration", "rows", texts[:200])
    other = written(tmp_path, "evaluation", "paragraphs", texts)
    windows = evaluation_windows(other, byte_tokenizer(), T, None, calibrates)
    left_out = sum(not is_held_out(text) for text in texts[:200]) / 400
    assert windows.source == f"{other}, without the {int(100 * left_out)}% of it that is calibration text"


def test_evaluation_text_that_calibrates_altogether_is_refused(tmp_path: Path) -> None:
    texts = sentence_paragraphs(100)
    calibrates = written(tmp_path, "calibration", "paragraphs", texts)
    seen = [text for text in texts if not is_held_out(text)]
    with pytest.raises(DataError, match=r"all of it is calibration text \(.*give --eval_datasets another text"):
        evaluation_windows(written(tmp_path, "evaluation", "rows", seen), byte_tokenizer(), T, None, calibrates)


def test_a_dataset_by_name_is_compared_where_it_calibrates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = sentence_paragraphs(50, 1), sentence_paragraphs(50, 2)
    (tmp_path / "ptb.train.txt").write_text("\n".join(train), encoding="utf-8")
    (tmp_path / "ptb.test.txt").write_text("\n".join(test), encoding="utf-8")
    monkeypatch.setenv("PTB_DIR", str(tmp_path))
    mixed = written(tmp_path, "evaluation", "rows", [*train[:25], *test])
    assert list(evaluation_text(mixed, "ptb", calibration_chars=10**6).documents) == test
    assert list(evaluation_text(mixed, "ptb").documents) == [*train[:25], *test]  # nothing calibrates in this run
    own = written(tmp_path, "calibration", "rows", test)
    assert list(evaluation_text("ptb", own).documents) == [text for text in test if is_held_out(text)]


def test_only_what_calibration_reads_is_compared() -> None:
    texts = sentence_paragraphs(50)
    assert without(texts[-1], CalibrationText(texts), 40) == ""
    assert without(texts[-1], CalibrationText(texts, max_chars=100), 40) == texts[-1]


def test_part_of_a_paragraph_that_calibrates_leaves_the_rest() -> None:
    one, two, three = (text.strip() for text in sentence_paragraphs(3, sentences=1))
    calibration = CalibrationText([two])
    assert without(f"{one}\n{two}\n{three}\n\nNext.", calibration, 40) == f"{one}\n{three}\n\nNext."
    assert without(f"{one} {two} {three}", calibration, 40) == f"{one} {three}".replace(" ", " ", 1)


THAI = "".join(chr(0x0E01 + number % 46) for number in range(40))


@pytest.mark.parametrize(
    "text",
    [
        " ".join(sentence_paragraphs(120)),
        " ".join(numbered_paragraphs(120)),  # no mark ends a sentence
        "".join(f"{chr(0x4E00 + 7 * n)}{chr(0x5E00 + 11 * n)}" * 9 + "。" for n in range(400)),
        "".join(f"{chr(0x3042 + n % 80)}{chr(0x4E00 + n)}{chr(0x5E00 + n)}" for n in range(4_000)),
        " ".join(f"{THAI[n % 40 :]}{THAI[: n % 37]}{chr(0x0E50 + n % 10)}" for n in range(400)),
        "A Title\n\nAn Author\n\n" + " ".join(sentence_paragraphs(120)),
    ],
    ids=["sentences", "words", "Chinese", "no mark at all", "Thai", "book"],
)
def test_a_text_on_one_line_is_split_by_passages(tmp_path: Path, text: str) -> None:
    path = tmp_path / "line.txt"
    path.write_text(text, encoding="utf-8")
    drawn = calibration_windows(str(path), byte_tokenizer(), 4, T, seed=0)
    read = evaluation_windows(str(path), byte_tokenizer(), T, None, str(path))
    assert drawn.source.startswith("passages of")
    assert "held-out 1/10 of the passages of" in read.source
    sides = [share(text, held_out, Units.PASSAGES) for held_out in (False, True)]
    assert not set(sides[0].split("\n")) & set(sides[1].split("\n")) - {""}
    assert 0.02 < len(sides[1]) / len(text) < 0.3


def test_passages_are_sentences_and_all_of_the_text() -> None:
    text = " ".join(sentence_paragraphs(50))
    found = list(passages(text))
    assert " ".join(found) == text
    assert all(SHORTEST_PASSAGE - 1 <= len(passage) < LONGEST_PASSAGE for passage in found[:-1])
    assert all(passage.endswith(".") for passage in found)
    assert list(map(normalised, passages(textwrap.fill(text, 40)))) == found


def test_paragraphs_stay_the_units_wherever_they_serve_both_sides() -> None:
    """Plans depend on the split, so a text that paragraphs can split is split by them."""
    texts = numbered_paragraphs(100)
    assert units_for(lambda: ["\n\n".join(texts)]) is Units.PARAGRAPHS
    assert units_for(lambda: texts) is Units.PARAGRAPHS
    assert units_for(lambda: ["\n".join(texts)]) is Units.PARAGRAPHS  # longer than one paragraph may be: line by line
    assert units_for(lambda: [" ".join(texts)]) is Units.PASSAGES
    assert units_for(lambda: texts[:1]) is Units.TEXT


def test_a_text_that_cannot_be_split_calibrates_and_is_not_evaluated(tmp_path: Path) -> None:
    """One sentence over and over: whatever evaluated it, calibration would have seen it."""
    path, other = tmp_path / "same.txt", tmp_path / "other.txt"
    path.write_text("这是一个没有换行的很长的中文段落。" * 400, encoding="utf-8")
    other.write_text("\n\n".join(numbered_paragraphs(20)), encoding="utf-8")
    assert len(calibration_windows(str(path), byte_tokenizer(), 4, T, seed=0)) == 4
    assert len(evaluation_windows(str(other), byte_tokenizer(), T, None, str(path)))
    with pytest.raises(
        DataError, match=r"repeats the same few; evaluate on another text, e\.g\. --eval_datasets pydoc"
    ):
        evaluation_windows(str(path), byte_tokenizer(), T, None, str(path))


@pytest.mark.parametrize("stage", ["calibration", "evaluation"])
def test_a_token_beyond_the_embedding_is_named(tmp_path: Path, stage: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(["layer score", *numbered_paragraphs(200), "layer score"] * 3), encoding="utf-8")
    tokenizer = byte_tokenizer()
    rows = len(tokenizer)

    def draw(vocab_rows: int | None) -> np.ndarray:
        if stage == "calibration":
            return calibration_windows(str(path), tokenizer, 900, T, seed=0, vocab_rows=vocab_rows).ids
        return evaluation_windows(str(path), tokenizer, T, None, None, vocab_rows=vocab_rows).ids

    assert draw(rows).max() < rows
    tokenizer.add_tokens(["layer score"])
    expected = rf"{stage} text holds the token 'layer score' with id {rows}, but the model's embedding has {rows} rows"
    with pytest.raises(DataError, match=expected):
        draw(rows)
    assert draw(rows + 1).max() == draw(None).max() == rows


def test_every_paragraph_is_found_by_the_split_it_had(tmp_path: Path) -> None:
    """Held-out paragraphs of a text in another format are those of the text itself."""
    texts = numbered_paragraphs(300)
    calibrates = written(tmp_path, "calibration", "paragraphs", texts)
    read = list(evaluation_text(written(tmp_path, "evaluation", "compressed", texts), calibrates).documents)
    assert read == [text for text in texts if is_held_out(text)]
    assert [paragraph for text in read for paragraph in paragraphs(text)] == read
