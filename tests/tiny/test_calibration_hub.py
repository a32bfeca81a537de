"""Hub datasets without a hub: an answer within seconds that names the offline choices. No test touches a network."""

import gzip
import io
import json
import time
from typing import Any, ClassVar

import datasets
import huggingface_hub
import pytest
from calibration_cases import byte_tokenizer, numbered_paragraphs

from calibration import calibration_windows, check_dataset, evaluation_windows, hub_text
from core.errors import DataError

OFFLINE = r"offline choices: pydoc, pycode, self \(.*not with --engine streamed.*\), or a PATH \(\.txt"


@pytest.fixture(autouse=True)
def nothing_known_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_text, "reached", set())
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def forbidden(*_: Any, **__: Any) -> None:
    raise AssertionError("nothing may be asked of the hub")


def not_cached(*_: Any, **__: Any) -> None:
    assert datasets.config.HF_HUB_OFFLINE, "without a hub only the cache may be tried"
    raise ConnectionError("Couldn't reach the hub\nand a second line")


@pytest.mark.parametrize("name", ["wikitext2", "c4"])
def test_offline_mode_fails_at_once(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", forbidden)
    monkeypatch.setattr(datasets, "load_dataset", not_cached)
    with pytest.raises(DataError, match=f"{name} .*HF_HUB_OFFLINE is set; {OFFLINE}"):
        check_dataset(name)


@pytest.mark.parametrize("name", ["wikitext2", "c4"])
def test_a_silent_network_is_given_up_within_seconds(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(hub_text, "PROBE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: time.sleep(3))
    monkeypatch.setattr(datasets, "load_dataset", not_cached)
    started = time.monotonic()
    with pytest.raises(DataError, match=f"no answer within 0.2 s; {OFFLINE}") as caught:
        check_dataset(name)
    assert time.monotonic() - started < 2
    assert "\n" not in str(caught.value)


def test_the_offline_switch_of_datasets_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", not_cached_api)
    monkeypatch.setattr(datasets, "load_dataset", not_cached)
    with pytest.raises(DataError, match="name resolution"):
        check_dataset("wikitext2")
    assert datasets.config.HF_HUB_OFFLINE is False


def not_cached_api(*_: Any, **__: Any) -> None:
    raise OSError("name resolution failed")


def test_a_reachable_hub_gives_train_to_calibration_and_test_to_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    rows = {"train": [" = Title = \n", "", *numbered_paragraphs(50)], "test": numbered_paragraphs(20, seed=1)}

    def load_dataset(path: str, config: str, split: str) -> dict[str, list[str]]:
        asked.append((path, config, split))
        return {"text": rows[split]}

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    tokenizer = byte_tokenizer()
    drawn = calibration_windows("wikitext2", tokenizer, 4, 33, seed=0)
    read = evaluation_windows("wikitext2", tokenizer, 33, 3, "wikitext2")
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", split) for split in ("train", "test")]
    assert tokenizer.decode(read.ids[:, 1:].ravel()) == "\n\n".join(rows["test"])[:96]
    train = "\n\n".join(rows["train"])
    assert all(tokenizer.decode(row[1:]) in train for row in drawn.ids)
    assert drawn.source == "train split of Salesforce/wikitext, wikitext-2-raw-v1"


class FakeHub:
    """A file system with one shard of c4's schema; ``broken`` breaks off after its first kilobytes."""

    opened: ClassVar[list[str]] = []
    broken = False

    def open(self, location: str, mode: str) -> io.BytesIO:
        assert mode == "rb"
        self.opened.append(location)
        rows = [{"text": text, "timestamp": "", "url": ""} for text in numbered_paragraphs(1_200, words=5)]
        shard = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
        return BrokenStream(shard) if self.broken else io.BytesIO(shard)


class BrokenStream(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 4_096:
            raise ConnectionResetError("peer went away")
        return super().read(size)


def test_c4_streams_a_shard_and_reports_a_connection_that_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", FakeHub)
    monkeypatch.setattr(FakeHub, "opened", [])
    check_dataset("c4")
    assert FakeHub.opened == []  # a check downloads nothing
    drawn = calibration_windows("c4", byte_tokenizer(), 4, 33, seed=0)
    read = evaluation_windows("c4", byte_tokenizer(), 33, 4, "c4")
    assert FakeHub.opened == [
        "datasets/allenai/c4/en/c4-train.00000-of-01024.json.gz",
        "datasets/allenai/c4/en/c4-validation.00000-of-00008.json.gz",
    ]
    assert drawn.ids.shape == read.ids.shape == (4, 33)
    monkeypatch.setattr(FakeHub, "broken", True)
    with pytest.raises(DataError, match=f"c4 .* peer went away; {OFFLINE}"):
        calibration_windows("c4", byte_tokenizer(), 4, 33, seed=0)
