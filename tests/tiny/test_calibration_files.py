"""Local files: every readable suffix gives the same documents, and what is no text is refused in one line."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from calibration_cases import byte_tokenizer, numbered_paragraphs

from calibration import calibration_windows, check_dataset, evaluation_windows
from calibration.text_files import documents, files_of
from core.errors import DataError

DOCUMENTS = ["The first document.\n\nIts second paragraph.", "Zweites, mit Umlauten: äöü €.", "a third"]


def c4_lines(texts: list[str]) -> bytes:
    """JSON lines of c4's schema."""
    rows = [{"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "https://example.com"} for text in texts]
    return "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8")


def write(folder: Path, name: str, texts: list[str]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(c4_lines(texts)))
    elif name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "id": list(range(len(texts)))}), path)
    elif name == "array.json":
        path.write_text(json.dumps([{"text": text} for text in texts], indent=1), encoding="utf-8")
    elif name.endswith(".txt"):
        path.write_text("\n\n".join(texts), encoding="utf-8")
    else:
        path.write_bytes(c4_lines(texts))
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "lines.json", "array.json", "c4.json.gz", "b.jsonl.gz", "A.PARQUET"])
def test_every_suffix_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name.lower(), DOCUMENTS)
    check_dataset(str(path))
    assert list(documents(path)) == DOCUMENTS


def test_a_text_file_is_one_document_without_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "bom.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert list(documents(path)) == ["one\ntwo\n"]


def test_a_folder_is_its_readable_files_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ["b/1.txt", "a.jsonl", ".hidden/x.txt", "notes.md", "c.parquet"]:
        write(tmp_path, name, [name])
    assert [file.relative_to(tmp_path).as_posix() for file in files_of(tmp_path)] == ["a.jsonl", "b/1.txt", "c.parquet"]
    check_dataset(str(tmp_path))
    assert list(documents(tmp_path)) == ["a.jsonl", "b/1.txt", "c.parquet"]


def test_a_local_shard_of_c4_serves_both_stages_through_the_reader_of_c4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = write(tmp_path, "c4-train.00000-of-01024.json.gz", numbered_paragraphs(1_200, words=6))
    tokenizer = byte_tokenizer()
    drawn = calibration_windows(str(shard), tokenizer, 16, 65, seed=0)
    read = evaluation_windows(str(shard), tokenizer, 65, None, str(shard))
    assert drawn.ids.shape == (16, 65)
    assert len(read) > 16

    # The named dataset reads a cached shard with the same code; evaluation stops after its first 1,100 documents.
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(shard))
    check_dataset("c4")
    named = evaluation_windows("c4", tokenizer, 65, None, "c4")
    assert named.text_bytes is not None
    joined = " ".join(numbered_paragraphs(1_200, words=6)[:1_100])
    assert named.text_bytes == len(joined) // 64 * 64
    assert "first 1,100 documents of en/c4-validation.00000-of-00008.json.gz" in named.source


def test_half_a_surrogate_pair_does_not_stop_the_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text('{"text": "a\\ud800b and enough text"}\n', encoding="utf-8")
    assert list(documents(path)) == ["a?b and enough text"]
    assert len(evaluation_windows(str(path), byte_tokenizer(), 8, None, None)) == 2


def test_ptb_is_read_from_the_folder_that_the_variable_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTB_DIR", str(tmp_path))
    with pytest.raises(DataError, match=r"its hub script no longer loads, and .*ptb\.train\.txt does not exist"):
        check_dataset("ptb")
    (tmp_path / "ptb.train.txt").write_text(" no it was n't black monday \n but it came close \n", encoding="utf-8")
    (tmp_path / "ptb.test.txt").write_text(" consumers may want \n to move \n", encoding="utf-8")
    check_dataset("ptb")
    tokenizer = byte_tokenizer()
    drawn = calibration_windows("ptb", tokenizer, 1, 45, seed=0)
    assert tokenizer.decode(drawn.ids[0, 1:]) == "no it was n't black monday but it came close"
    read = evaluation_windows("ptb", tokenizer, 27, None, "ptb")
    assert tokenizer.decode(read.ids[0, 1:]) == "consumers may want to move"


def test_ptb_without_the_folder_says_how_to_supply_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PTB_DIR", raising=False)
    with pytest.raises(DataError, match=r"set PTB_DIR to a folder .* or give one file: --dataset path/to/ptb"):
        check_dataset("ptb")


def check_and_read(path: Path) -> None:
    """The check looks at the first text of each file; what is wrong further on shows when it is read."""
    check_dataset(str(path))
    list(documents(path))


BAD_FILES = [
    ("empty.txt", b"", "is empty"),
    ("blank.txt", b" \n\n ", "holds no text"),
    ("zeros.txt", b"abc\0def", "is binary"),
    ("latin.txt", b"caf\xe9 au lait", r"not UTF-8 text \(byte 3\)"),
    ("binary.jsonl", bytes(range(128, 256)), "not UTF-8 text"),
    ("broken.jsonl", b'{"text": "a"}\n{"text": ', "line 2 is not JSON"),
    ("other.jsonl", b'{"content": "a"}\n', r'line 1 has no "text" string \(it has: content\)'),
    ("number.json", b'[{"text": 1}]', 'row 0 has no "text" string'),
    ("plain.json.gz", b'{"text": "a"}\n', "not a complete gzip file"),
    ("cut.json.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:-20], "not a complete gzip file"),
    ("numbers.jsonl", b"1\n2\n", r'has no "text" string \(it is a number\): give rows of text'),
    ("table.json", b'{"text": ["a", "b"]}', r"it has: text, a list\): give rows of text"),
    ("fake.parquet", b"PAR1 not really", "not a readable parquet file"),
    ("model.safetensors", b"abc", "its name must end in one of .txt"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES, ids=[name for name, _, _ in BAD_FILES])
def test_what_is_no_text_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        check_and_read(path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_parquet_without_a_text_column_names_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"content": ["a"], "id": [1]}), path)
    with pytest.raises(DataError, match=r'no "text" column \(it has: content, id\)'):
        check_dataset(str(path))


def test_a_folder_without_text_and_a_name_that_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds no text file \(readable: .txt"):
        check_dataset(str(tmp_path))
    with pytest.raises(
        DataError, match="'wikitext' is neither one of c4, ptb, pycode, pydoc, self, wikitext2 nor a file"
    ):
        check_dataset("wikitext")
    with pytest.raises(DataError, match="'' is neither"):
        check_dataset("")
