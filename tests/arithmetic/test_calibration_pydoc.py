"""``pydoc``: read without importing, split by paragraph, the same every time."""

import platform
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from calibration import check_dataset, code_file
from calibration.paragraphs import is_held_out, normalised, paragraphs
from calibration.pydoc import pydoc_corpus
from calibration.python_code import code_documents
from core.errors import DataError

MODULE = '''"""Module docstring,
    indented."""
raise SystemExit("never run")
class A:
    """Class docstring."""
    def f(self):
        """Function docstring.

        Second paragraph.
        """
try:
    pass
except ImportError:
    async def g():
        "Fallback docstring with an invalid escape: \\d."
'''


def all_paragraphs(documents: tuple[str, ...]) -> list[str]:
    return [normalised(paragraph) for document in documents for paragraph in paragraphs(document)]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "pydoc_data").mkdir()
    topics = {f"topic{n:02}": f"Topic {n} text.\n\nShared paragraph." for n in range(60)}
    (tmp_path / "pydoc_data" / "topics.py").write_text(f"topics = {topics!r}\n", encoding="utf-8")
    (tmp_path / "module.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "broken.py").write_text("def (:\n", encoding="utf-8")
    (tmp_path / "latin.py").write_bytes(b'"""caf\xe9"""\n')
    for folder in ("test", "site-packages", "ctypes/test", "idlelib/idle_test"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.py").write_text('"""Never read."""\n', encoding="utf-8")
    return tmp_path


def test_reads_topics_and_docstrings_of_a_library_once_each(library: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corpus = pydoc_corpus(library)
    found = all_paragraphs(corpus.calibration + corpus.evaluation)
    expected = {f"Topic {n} text." for n in range(60)} | {"Shared paragraph.", "Module docstring, indented."}
    expected |= {"Class docstring.", "Function docstring.", "Second paragraph."}
    expected |= {"Fallback docstring with an invalid escape: \\d."}
    assert set(found) == expected
    assert len(found) == len(expected)


def test_a_folder_without_sources_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Python sources with docstrings under"):
        pydoc_corpus(tmp_path)


def test_the_splits_share_no_paragraph() -> None:
    corpus = pydoc_corpus()
    calibration, evaluation = all_paragraphs(corpus.calibration), all_paragraphs(corpus.evaluation)
    assert set(calibration).isdisjoint(evaluation)
    assert len(set(calibration)) == len(calibration)
    assert not any(map(is_held_out, calibration))
    assert all(map(is_held_out, evaluation))
    held_out = sum(map(len, evaluation)) / sum(map(len, calibration + evaluation))
    assert 0.07 < held_out < 0.13
    assert sum(map(len, calibration)) > 1_000_000
    assert platform.python_version() in corpus.source
    check_dataset("pydoc")


def test_nothing_is_imported_and_the_order_is_the_same_in_every_process() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "from calibration.pydoc import pydoc_corpus\n"
        "between = set(sys.modules)\n"
        "import hashlib; corpus = pydoc_corpus()\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - between}\n"
        "assert not new & {'pydoc_data', 'this', 'antigravity', 'turtle', 'idlelib'}, new\n"
        "assert len(new) < 10, new\n"
        "print(hashlib.sha256(repr(corpus).encode()).hexdigest())"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "error", "-c", code]
    digests = {subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(digests) == 1


# Code, the other text that every Python carries


def test_code_has_no_docstring_and_no_comment(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text('"""Module."""\nx = 1  # a comment\nclass C:\n    """Class."""\n')
    (tmp_path / "a.py").write_text('def f(a):\n    """Function."""\n    return "kept"\n')
    (tmp_path / "broken.py").write_text("def (:\n")
    assert list(code_documents(tmp_path)) == [
        "def f(a):\n    return 'kept'",
        "x = 1\n\nclass C:\n    pass",
    ]
    with pytest.raises(DataError, match="no Python sources"):
        list(code_documents(tmp_path / "nothing"))


def test_a_modules_name_decides_the_side_of_its_code(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"module{number}.py").write_text(f"x = {number}\n", encoding="utf-8")
    sides = [list(code_documents(tmp_path, held_out)) for held_out in (False, True)]
    assert sorted(sides[0] + sides[1]) == sorted(code_documents(tmp_path))
    held_out = [f"x = {number}" for number in range(40) if is_held_out(f"module{number}.py")]
    assert sorted(sides[1]) == sorted(held_out)
    assert 0 < len(held_out) < 10


@pytest.mark.slow
def test_code_holds_no_paragraph_of_pydocs_evaluation_text() -> None:
    """Not as a docstring, nor inside a string that is written on one line; short ones may stand anywhere."""
    code = normalised("\n".join(code_documents()).replace("\\n", " "))
    held_out = [paragraph for document in pydoc_corpus().evaluation for paragraph in paragraphs(document)]
    long = [normalised(paragraph) for paragraph in held_out if len(paragraph) > 60]
    assert len(long) > 500
    assert [paragraph for paragraph in long if paragraph in code] == []


def test_the_file_of_code_is_written_whole_or_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(code_file, "code_documents", lambda: ["a = 1", "b = 2"])
    codes = {}
    for name in ("code.txt", "code.txt/inside.txt", "."):
        monkeypatch.setattr(sys, "argv", ["code_file", str(tmp_path / name)])
        codes[name] = code_file.main(), capsys.readouterr().err
    assert (tmp_path / "code.txt").read_text(encoding="utf-8") == "a = 1\n\nb = 2"
    assert [path.name for path in tmp_path.iterdir()] == ["code.txt"]
    assert codes.pop("code.txt") == (0, "")
    for code, said in codes.values():
        assert (code, said.count("\n"), said[:7]) == (2, 1, "error: ")
