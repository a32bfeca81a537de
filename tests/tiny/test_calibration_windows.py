"""Windows: drawn by seed, consecutive, beginning with BOS, and never the same text on both sides."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calibration_cases import byte_tokenizer, numbered_paragraphs

from calibration import calibration_windows, evaluation_windows
from calibration.paragraphs import LONGEST_PARAGRAPH, is_held_out, paragraphs, share
from calibration.tokens import PIECE_CHARS, tokenise
from core.errors import DataError, UsageError

T = 33


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(numbered_paragraphs(400)), encoding="utf-8")
    return str(path)


def decode(row: np.ndarray, tokenizer: Any) -> str:
    return str(tokenizer.decode(row, skip_special_tokens=True))


def test_same_seed_same_windows_and_another_seed_others(text_file: str) -> None:
    tokenizer = byte_tokenizer()
    first = calibration_windows(text_file, tokenizer, 8, T, seed=3)
    assert first.fingerprint == calibration_windows(text_file, tokenizer, 8, T, seed=3).fingerprint
    assert first.fingerprint != calibration_windows(text_file, tokenizer, 8, T, seed=4).fingerprint
    assert first.ids.shape == (8, T)
    assert (first.split, first.dataset) == ("calibration", text_file)


def test_every_window_begins_with_bos_and_holds_it_nowhere_else(text_file: str) -> None:
    tokenizer = byte_tokenizer()
    drawn = calibration_windows(text_file, tokenizer, 8, T, seed=0)
    read = evaluation_windows(text_file, tokenizer, T, None, None)
    for windows in (drawn, read):
        assert (windows.ids[:, 0] == tokenizer.bos_token_id).all()
        assert (windows.ids[:, 1:] != tokenizer.bos_token_id).all()


def test_without_a_bos_token_a_window_is_text_alone(text_file: str) -> None:
    tokenizer = byte_tokenizer(bos=False)
    windows = evaluation_windows(text_file, tokenizer, T, 2, None)
    text = Path(text_file).read_text(encoding="utf-8")
    assert decode(windows.ids[0], tokenizer) + decode(windows.ids[1], tokenizer) == text[: 2 * T]
    assert windows.text_bytes == 2 * (T - 1)  # one byte a token, the first of each window is not predicted


def test_calibration_windows_do_not_overlap_while_the_text_is_long_enough(text_file: str) -> None:
    tokenizer = byte_tokenizer()
    text = share(Path(text_file).read_text(encoding="utf-8"), held_out=False)
    count = len(text) // (T - 1)
    windows = calibration_windows(text_file, tokenizer, count, T, seed=1)
    pieces = [decode(row, tokenizer) for row in windows.ids]
    assert sum(text.count(piece) for piece in pieces) == count  # unique pieces, each found once ...
    starts = sorted(text.index(piece) for piece in pieces)
    assert min(np.diff(starts)) == T - 1  # ... and none begins inside another
    assert "overlap" not in windows.source


def test_a_short_text_gives_overlapping_windows_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text(next(p for p in numbered_paragraphs(99) if not is_held_out(p)), encoding="utf-8")
    windows = calibration_windows(str(path), byte_tokenizer(), 50, T, seed=0)
    assert windows.ids.shape == (50, T)
    assert "50 windows of 33 overlap, as the text has only" in windows.source


def test_evaluation_windows_are_consecutive_text_and_the_rest_is_dropped(text_file: str) -> None:
    tokenizer = byte_tokenizer()
    text = Path(text_file).read_text(encoding="utf-8")
    windows = evaluation_windows(text_file, tokenizer, T, None, "pydoc")
    count = len(text) // (T - 1)
    assert "".join(decode(row, tokenizer) for row in windows.ids) == text[: count * (T - 1)]
    assert windows.text_bytes == count * (T - 1)
    assert "all of it" in windows.source
    assert np.array_equal(evaluation_windows(text_file, tokenizer, T, 5, None).ids, windows.ids[:5])


def test_windows_that_are_spread_are_some_of_all(text_file: str) -> None:
    tokenizer = byte_tokenizer()
    everything = evaluation_windows(text_file, tokenizer, T, None, text_file)
    some = evaluation_windows(text_file, tokenizer, T, None, text_file, spread=3)
    places = [i * len(everything) // 3 for i in range(3)]
    assert some.ids.tolist() == everything.ids[places].tolist()
    assert some.source == f"3 windows, evenly spaced, of the {everything.source}"
    assert some.text_bytes == 3 * (T - 1)
    assert len(evaluation_windows(text_file, tokenizer, T, None, text_file, spread=10**6)) == len(everything)


def test_text_bytes_are_utf8_bytes(tmp_path: Path) -> None:
    # "é" is 2 bytes, "€" 3, "😀" 4: the text is 12 bytes, and 12 tokens of one byte make a window with BOS.
    path = tmp_path / "wide.txt"
    path.write_text("aé€😀bc", encoding="utf-8")
    assert evaluation_windows(str(path), byte_tokenizer(), 13, None, None).text_bytes == 12


@pytest.mark.parametrize("serves", ["itself", "link", "copy", "inside the folder", "the folder"])
def test_a_path_that_serves_both_is_split_and_shares_nothing(text_file: str, tmp_path: Path, serves: str) -> None:
    tokenizer = byte_tokenizer()
    calibration, evaluation = text_file, text_file
    if serves == "link":
        (tmp_path / "link.txt").symlink_to(text_file)
        evaluation = str(tmp_path / "link.txt")
    if serves == "copy":
        (tmp_path / "copy.txt").write_bytes(Path(text_file).read_bytes())
        evaluation = str(tmp_path / "copy.txt")
    if serves == "inside the folder":
        calibration = str(tmp_path)
    if serves == "the folder":
        evaluation = str(tmp_path)
    drawn = calibration_windows(calibration, tokenizer, 450, T, seed=0)
    read = evaluation_windows(evaluation, tokenizer, T, None, calibration)
    assert "held-out" in read.source
    assert "overlap" not in drawn.source

    everything = paragraphs(Path(text_file).read_text(encoding="utf-8"))
    held_out = [paragraph for paragraph in everything if is_held_out(paragraph)]
    assert 0.05 < len(held_out) / len(everything) < 0.15
    seen = "".join(decode(row, tokenizer) for row in read.ids)
    assert seen in "\n\n".join(held_out)  # evaluation is the held-out paragraphs, in order
    calibration_text = "\n\n".join(paragraph for paragraph in everything if not is_held_out(paragraph))
    pieces = {decode(row, tokenizer) for row in drawn.ids}
    assert all(piece in calibration_text for piece in pieces)
    for start in range(len(seen) - T + 2):  # no window of calibration is anywhere in what evaluation reads
        assert seen[start : start + T - 1] not in pieces


def test_another_file_is_evaluated_whole(text_file: str, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(numbered_paragraphs(20, seed=1)), encoding="utf-8")
    windows = evaluation_windows(str(other), byte_tokenizer(), T, None, text_file)
    assert len(windows) == other.stat().st_size // (T - 1)


def test_calibration_takes_only_its_share_whoever_evaluates(text_file: str) -> None:
    tokenizer = byte_tokenizer()
    windows = calibration_windows(text_file, tokenizer, 500, T, seed=0)
    drawn = "\n".join(decode(row, tokenizer) for row in windows.ids)
    for paragraph in paragraphs(Path(text_file).read_text(encoding="utf-8")):
        if is_held_out(paragraph):
            assert paragraph[: T // 2] not in drawn


def test_lines_of_a_text_without_blank_lines_are_split_one_by_one() -> None:
    lines = numbered_paragraphs(LONGEST_PARAGRAPH // 20)
    document = "\n".join(lines)
    kept, held_out = share(document, held_out=False).split("\n"), share(document, held_out=True).split("\n")
    assert sorted(kept + held_out) == sorted(lines)
    assert 0 < len(held_out) < len(kept)


def test_a_repeated_paragraph_stays_on_one_side_whatever_its_white_space() -> None:
    paragraph = "one two\nthree"
    assert is_held_out(paragraph) == is_held_out("one   two three ")
    assert share(f"{paragraph}\n \n{paragraph}", is_held_out(paragraph)) == f"{paragraph}\n\n{paragraph}"


@pytest.mark.parametrize(("stage", "option"), [("calibration", "--seq_len"), ("evaluation", "--eval_seq_len")])
def test_text_shorter_than_a_window_names_both_counts(tmp_path: Path, stage: str, option: str) -> None:
    path = tmp_path / "tiny.txt"
    path.write_text(next(p for p in numbered_paragraphs(99, words=2) if not is_held_out(p)), encoding="utf-8")
    size = path.stat().st_size
    expected = f"{size} tokens of {stage} text, but one window of 64 needs 63: lower {option} to {size + 1} or less"
    arguments = (1, 64, 0) if stage == "calibration" else (64, None, None)
    draw = calibration_windows if stage == "calibration" else evaluation_windows
    with pytest.raises(DataError, match=expected):
        draw(str(path), byte_tokenizer(), *arguments)
    longest = evaluation_windows(str(path), byte_tokenizer(), size + 1, None, None)
    assert longest.ids.shape == (1, size + 1)


def test_counts_that_cannot_work(text_file: str) -> None:
    with pytest.raises(UsageError, match="at least 2"):
        calibration_windows(text_file, byte_tokenizer(), 4, 1, seed=0)
    with pytest.raises(UsageError, match="--num_samples 0"):
        calibration_windows(text_file, byte_tokenizer(), 0, T, seed=0)
    with pytest.raises(UsageError, match="--eval_samples 0"):
        evaluation_windows(text_file, byte_tokenizer(), T, 0, None)


def test_text_longer_than_the_context_raises_no_warning(
    text_file: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation_windows(text_file, byte_tokenizer(context=8), T, None, None)
    assert capfd.readouterr().err == ""
    assert not caplog.records


def test_tokenising_in_pieces_is_tokenising_at_once() -> None:
    # One token a byte and no piece boundary inside a character: the pieces must add up to the text.
    text = " ".join(numbered_paragraphs(3_000)) + "é" * (PIECE_CHARS + 7)
    stream = tokenise([text[:100], text[100:]], "", byte_tokenizer())
    whole = byte_tokenizer()(text, add_special_tokens=False, verbose=False)["input_ids"]
    assert stream.ids.tolist() == whole
    assert stream.byte_starts is not None
    assert stream.byte_starts[-1] == len(text.encode("utf-8"))
    assert (np.diff(stream.byte_starts) >= 0).all()
    assert stream.chars == len(text)
    assert stream.complete


def test_reading_stops_once_there_is_enough() -> None:
    def endless() -> Iterator[str]:
        while True:
            yield "word " * 1_000

    stream = tokenise(endless(), "\n\n", byte_tokenizer(), max_tokens=PIECE_CHARS + 1)
    assert not stream.complete
    assert PIECE_CHARS < len(stream) <= 2 * PIECE_CHARS
    assert math.isclose(tokenise(endless(), "", byte_tokenizer(), max_chars=1).chars, PIECE_CHARS, rel_tol=0.5)
