"""``--dataset``: one text or several, by share; a path that exists wins over every other reading."""

from pathlib import Path

import pytest

from core.errors import UsageError
from core.sources import named_sources, sources_of, windows_by_share


def shares(dataset: str) -> dict[str, float]:
    return {source.name: source.share for source in sources_of(dataset)}


@pytest.mark.parametrize("name", ["pydoc", "a/b.txt", "C:\\text", "notes:v2.txt", "self"])
def test_one_text(name: str) -> None:
    assert shares(name) == {name: 1.0}


def test_several_in_equal_shares_or_by_share() -> None:
    assert shares("pydoc,self") == {"pydoc": 0.5, "self": 0.5}
    assert shares("a.txt:0.7,self:0.3") == pytest.approx({"a.txt": 0.7, "self": 0.3})
    assert shares("C:\\a:2,self:1,b:.5") == pytest.approx({"C:\\a": 2 / 3.5, "self": 1 / 3.5, "b": 0.5 / 3.5})


def test_a_path_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.txt", "c:1", "d,e:3,f"):
        Path(name).touch()
    assert named_sources("a,b.txt") == ("a,b.txt",)
    assert shares("c:1") == {"c:1": 1.0}
    assert named_sources("self,a,b.txt,d,e:3,f,g") == ("self", "a,b.txt", "d,e:3,f", "g")
    assert shares("a,b.txt:3,c:1:1") == {"a,b.txt": 0.75, "c:1": 0.25}


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("pydoc,", "empty between its commas"),
        ("pydoc,self,pydoc", "names pydoc twice"),
        ("pydoc:0.5,self", "self has no share"),
        ("pydoc:0,self:1", "a share of 0"),
        ("self:-1", "the share of self is '-1', which is no number above 0; use self:0.5"),
        ("pydoc:0.5,self:half", "the share of self is 'half'"),
        ("self:", "the share of self is ''"),
    ],
)
def test_what_is_no_mixture(dataset: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        sources_of(dataset)


def test_windows_by_share() -> None:
    """7 of 3 equal: 2.33 each, the first gets what is left. 0.7 of 10 is 7 whatever floats make of it."""
    assert windows_by_share(sources_of("a,b,c"), 7) == (3, 2, 2)
    assert windows_by_share(sources_of("a:0.7,b:0.3"), 10) == (7, 3)
    assert windows_by_share(sources_of("a:0.7,b:0.3"), 16) == (11, 5)
    assert windows_by_share(sources_of("a,b"), 0) == (0, 0)


def test_texts_that_are_evaluated_take_no_shares() -> None:
    assert named_sources("other.txt:0.5,self:0.5") == ("other.txt", "self")
    with pytest.raises(UsageError, match=r"take no shares, each is evaluated whole; use other\.txt,self") as refused:
        named_sources("other.txt:0.5,self")
    assert "has no share" not in str(refused.value)
