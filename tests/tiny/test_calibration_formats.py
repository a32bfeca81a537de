"""Text as people have it: formats, compression, encodings, columns, and folders that hold more than text."""

import bz2
import gzip
import json
import lzma
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from calibration_cases import byte_tokenizer, numbered_paragraphs

from calibration import check_dataset, evaluation_windows
from calibration.readers import PART_BYTES
from calibration.splits import CALIBRATION, EVALUATION
from calibration.text_files import documents, files_of
from core.errors import DataError
from core.say import heard_by, say_on_stderr

TEXTS = ["The first, with a comma.", 'The "second"; quoted.', "Das dritte: äöü €."]


def zstd(data: bytes) -> bytes:
    return bytes(pyarrow.Codec("zstd").compress(data, asbytes=True))


def rows(texts: list[Any], column: str = "text") -> bytes:
    return "".join(json.dumps({"id": number, column: text}) + "\n" for number, text in enumerate(texts)).encode()


def table(texts: list[Any], column: str = "text") -> Any:
    return pyarrow.table({"id": list(range(len(texts))), column: texts})


def separated(by: str, column: str = "text") -> bytes:
    lines = [f"id{by}{column}", *(f'{n}{by}"{text.replace(chr(34), chr(34) * 2)}"' for n, text in enumerate(TEXTS))]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", separated(",")),
        ("bom.csv", b"\xef\xbb\xbf" + separated(",")),
        ("semicolon.csv", separated(";")),
        ("a.tsv", separated("\t")),
        ("a.csv.gz", gzip.compress(separated(","))),
        ("a.ndjson", rows(TEXTS)),
        ("a.jsonl.zst", zstd(rows(TEXTS))),
        ("a.jsonl.bz2", bz2.compress(rows(TEXTS))),
        ("a.jsonl.xz", lzma.compress(rows(TEXTS))),
        ("utf16.jsonl", rows(TEXTS).decode().encode("utf-16")),
        ("null.jsonl", rows([None, *TEXTS, None])),
        ("later.jsonl", rows(TEXTS) + b'{"id": 4}\n'),
    ],
)
def test_rows_of_every_format_are_documents(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    check_dataset(str(tmp_path / name))
    assert list(documents(tmp_path / name)) == TEXTS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.md", b"one\n\ntwo"),
        ("a.txt.gz", gzip.compress(b"one\n\ntwo")),
        ("a.txt.zst", zstd(b"one\n\ntwo")),
        ("utf16.txt", "one\n\ntwo".encode("utf-16")),
        ("big-endian.txt", b"\xfe\xff" + "one\n\ntwo".encode("utf-16-be")),
        ("mac.txt", b"one\r\rtwo"),
        ("windows.txt", b"one\r\n\r\ntwo"),
    ],
)
def test_a_text_file_is_one_document_however_it_is_written(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert list(documents(tmp_path / name)) == ["one\n\ntwo"]


def test_a_long_text_comes_in_parts_that_are_the_text_again(tmp_path: Path) -> None:
    text = "\n\n".join(["é" * 999_999, "", "b\n"] * 12)
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    parts = list(documents(tmp_path / "long.txt"))
    assert len(parts) > 1
    assert len(text.encode()) > 2 * PART_BYTES
    assert "\n\n".join(parts) == text


@pytest.mark.parametrize(
    "write", [pyarrow.parquet.write_table, pyarrow.feather.write_feather], ids=["parquet", "arrow"]
)
def test_nulls_of_a_table_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Callable[..., None]
) -> None:
    path = tmp_path / ("a.parquet" if write is pyarrow.parquet.write_table else "a.arrow")
    write(table([*TEXTS, None, None]), str(path))
    with heard_by(say_on_stderr):
        assert list(documents(path)) == list(documents(path)) == TEXTS
    assert capsys.readouterr().err == f'note: {path}: 2 rows without text in "text" left out\n'


def test_another_column_is_asked_for_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(rows(TEXTS, "content"))
    (tmp_path / "b.csv").write_bytes(separated(",", "content"))
    pyarrow.parquet.write_table(table(TEXTS, "content"), tmp_path / "c.parquet")
    pyarrow.feather.write_feather(table(TEXTS, "content"), str(tmp_path / "d.arrow"))
    for name in ("a.jsonl", "b.csv", "c.parquet", "d.arrow"):
        with pytest.raises(DataError, match=r'no "text" .*: add --text_column content$'):
            check_dataset(str(tmp_path / name))
        check_dataset(str(tmp_path / name), "content")
        assert list(documents(tmp_path / name, "content")) == TEXTS


BAD_ROWS = [
    ("two.jsonl", b'{"title": "a", "body": "b"}', r"give the one that holds the text as --text_column$"),
    ("chat.jsonl", b'{"messages": [{"role": "user", "content": "a"}]}', r"apply_chat_template\(row\[.messages.\]"),
    ("number.jsonl", b'{"text": 1}', r"it has: text, a int\)"),
    ("headless.csv", b'"' + b"words " * 20 + b'"\n"more words"\n', "its first line must name its columns"),
    ("cut.txt.bz2", bz2.compress(b"words " * 999)[:-9], "not a complete bzip2 file"),
    ("plain.txt.xz", b"words", "not a complete xz file"),
    ("cut.txt.zst", zstd(os.urandom(999))[:-99], "not a complete zstd file"),
    ("utf16.txt", "without a mark".encode("utf-16-le"), "give UTF-8, or UTF-16 with a byte order mark"),
    ("pointer.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run git lfs pull"),
    ("deep.json", b"[" * 200_000, "is not JSON"),
    ("empty.csv", b"text\n", "holds no text"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_ROWS, ids=[name for name, _, _ in BAD_ROWS])
def test_the_refusal_says_what_would_help(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)

    def check_and_read() -> None:
        check_dataset(str(tmp_path / name))
        list(documents(tmp_path / name))

    with pytest.raises(DataError, match=message) as caught:
        check_and_read()
    assert "\n" not in str(caught.value)


def test_files_without_text_are_passed_over_with_a_word(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words", encoding="utf-8")
    (tmp_path / "b.txt").write_text("", encoding="utf-8")
    (tmp_path / "c.jsonl").write_text('{"file_name": "a"}\n', encoding="utf-8")
    heard: list[str] = []
    for _ in range(2):  # whoever listens hears it once, and the next one hears it again
        with heard_by(heard.append):
            check_dataset(str(tmp_path))
            assert list(documents(tmp_path)) == ["words"]
    assert (
        heard
        == [f"note: folder {tmp_path}: 2 files are left out, since {tmp_path}/b.txt is empty (1 more like it)"] * 2
    )
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match=r"b\.txt is empty \(and no other file"):
        check_dataset(str(tmp_path))


def test_a_folder_keeps_reading_the_formats_that_it_always_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is in a text decides which plan comes of it: formats that were added later do not join a folder."""
    (tmp_path / "a.txt").write_text("words", encoding="utf-8")
    (tmp_path / "notes.md").write_text("notes", encoding="utf-8")
    assert list(documents(tmp_path)) == ["words"]
    assert "reads 1 of 2 files, not those of other formats (.md)" in capsys.readouterr().err
    (tmp_path / "a.txt").unlink()
    assert list(documents(tmp_path)) == ["notes"]


def test_pipes_sockets_and_broken_links_keep_nobody_waiting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("words", encoding="utf-8")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "nothing.txt")
    (tmp_path / "folder.txt").mkdir()
    with socket.socket(socket.AF_UNIX) as listener, pytest.MonkeyPatch.context() as inside:
        inside.chdir(tmp_path)  # the path of a socket is short
        listener.bind("socket.txt")
        assert files_of(tmp_path) == [tmp_path / "a.txt"]
    assert "link.txt left out: a link to a file that does not exist" in capsys.readouterr().err
    with pytest.raises(DataError, match="neither a file nor a folder"):
        check_dataset(str(tmp_path / "pipe.txt"))


@pytest.mark.parametrize("name", ["x" * 5_000, "~nobody-of-this-name/a.txt", "a\0b"])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(DataError, match="dataset '") as caught:
        check_dataset(name)
    assert len(str(caught.value)) < 400


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("words", encoding="utf-8")
    (tmp_path / "locked").mkdir()
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot read folder .*locked: Permission denied"):
        files_of(tmp_path)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    (tmp_path / "a.txt").write_text("words", encoding="utf-8")

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=rf"cannot read .*a\.txt: {error.strerror}"):
        check_dataset(str(tmp_path / "a.txt"))


def test_a_dataset_repository_is_its_splits_and_not_its_papers(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    pyarrow.parquet.write_table(table(["trained on"]), data / "train-00000-of-00001.parquet")
    (tmp_path / "dataset_infos.json").write_text('{"default": {}}', encoding="utf-8")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    (tmp_path / ".gitattributes").write_text("*.parquet filter=lfs", encoding="utf-8")
    assert list(documents(tmp_path, side=EVALUATION)) == ["trained on"]
    pyarrow.parquet.write_table(table(["tested on"]), data / "test-00000-of-00001.parquet")
    pyarrow.parquet.write_table(table(["chosen by"]), data / "validation-00000-of-00001.parquet")
    assert list(documents(tmp_path, side=CALIBRATION)) == ["trained on"]
    assert list(documents(tmp_path, side=EVALUATION)) == ["tested on"]


def test_what_save_to_disk_wrote_is_read(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    one = datasets.Dataset.from_dict({"text": TEXTS})
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=one, test=datasets.Dataset.from_dict({"text": ["else"]})).save_to_disk(tmp_path / "both")
    assert list(documents(tmp_path / "one")) == TEXTS
    assert list(documents(tmp_path / "both", side=CALIBRATION)) == TEXTS
    assert list(documents(tmp_path / "both", side=EVALUATION)) == ["else"]


def test_enormous_evaluation_text_is_read_in_part_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 40 windows of 65 tokens, one token a byte: 400 paragraphs of about 100 bytes are ten times that."""
    monkeypatch.setattr("calibration.drawing.EVALUATION_TOKENS", 40 * 65)
    path, small = tmp_path / "large.txt", tmp_path / "small.txt"
    path.write_text("\n\n".join(numbered_paragraphs(400)), encoding="utf-8")
    small.write_text("\n\n".join(numbered_paragraphs(20)), encoding="utf-8")
    windows = evaluation_windows(str(path), byte_tokenizer(), 65, None, None)
    everything = path.stat().st_size // 64
    assert len(windows) == 40
    assert windows.source == f"first 40 windows of the {path}, all of it"
    assert f"the first 40 of {everything:,} windows of 65 tokens; use --eval_samples N" in capsys.readouterr().err
    assert len(evaluation_windows(str(path), byte_tokenizer(), 65, 10**6, None)) == everything
    assert len(evaluation_windows(str(small), byte_tokenizer(), 65, None, None)) == small.stat().st_size // 64
    assert capsys.readouterr().err == ""
