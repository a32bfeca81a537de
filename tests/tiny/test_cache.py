"""Measurements kept between runs: found again under the same key only, never believed when damaged or foreign."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from workspace import Workspace, call, observe

from cli.options import parse_options
from core.cache import BadEntryError, Entry, entry_path, read_entry, write_entry
from core.measured import GradientStatistics, Importance, Prior
from core.windows import TokenWindows
from importance.entries import importance_entry, importance_from, prior_entry, prior_from
from models.identity import model_identity
from models.loading import check_model
from run import cache_keys, session
from run.cache_keys import importance_key, perplexity_key, prior_key
from run.complete import cache_folder
from run.settings import ScoreSettings

ROOT = Path(__file__).resolve().parents[2]
KEY = {"criterion": "taylor", "seed": 0, "shape": (2, 3)}


def outcomes(run: Path) -> dict[str, str]:
    found = json.loads((run / "run.json").read_text())["facts"]["cache"]
    return {part.split(" on ")[0]: outcome for part, outcome in found.items()}


# An entry


def entry() -> Entry:
    return Entry({"a": np.arange(6, dtype=np.float64).reshape(2, 3), "b": np.array([np.inf, -0.0])}, {"n": 0.1})


def test_an_entry_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = entry_path(tmp_path, "part", KEY)
    assert read_entry(path, KEY) is None
    write_entry(path, KEY, entry())
    found = read_entry(path, KEY)
    assert found is not None
    assert found.facts == entry().facts
    for name, array in entry().arrays.items():
        assert found.arrays[name].dtype == array.dtype
        assert found.arrays[name].tobytes() == array.tobytes()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("position", [0, 7, 40, -200, -1])
def test_a_changed_byte_is_found(tmp_path: Path, position: int) -> None:
    path = write_entry(tmp_path / "x.safetensors", KEY, entry())
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadEntryError, match="damaged"):
        read_entry(path, KEY)


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_truncated_file_is_found(tmp_path: Path, size: int) -> None:
    path = write_entry(tmp_path / "x.safetensors", KEY, entry())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BadEntryError, match="damaged"):
        read_entry(path, KEY)


def test_what_killed_writers_left_is_removed_after_an_hour(tmp_path: Path) -> None:
    name = f".importance-{'0' * 64}.abcd_3fg.safetensors"
    for folder, mode, hours in (("dead", 0o600, 2), ("alive", 0o600, 0), ("mine", 0o644, 2)):
        path = tmp_path / folder / name
        path.parent.mkdir()
        path.touch(mode=mode)
        then = path.stat().st_mtime - 3600 * hours
        os.utime(path, (then, then))
        write_entry(tmp_path / folder / "x.safetensors", KEY, entry())
        assert path.exists() is (folder != "dead")


def test_an_entry_of_another_key_is_foreign(tmp_path: Path) -> None:
    path = write_entry(tmp_path / "x.safetensors", KEY, entry())
    with pytest.raises(BadEntryError, match="foreign"):
        read_entry(path, KEY | {"seed": 1})


def test_a_tensor_file_without_key_is_damaged(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(BadEntryError, match="damaged"):
        read_entry(tmp_path / "x.safetensors", KEY)


def test_measurements_come_back_as_they_were() -> None:
    rng = np.random.default_rng(0)
    mean, norm, low, high = rng.random((4, 3))
    gradients = GradientStatistics(mean, norm, low, high, source="weights")
    for importance in (
        Importance(rng.random(7), "taylor_2nd", gradients, 5, 1, 0.1 + 0.2, ["a note"]),
        Importance(rng.random(7), "magnitude", None),
        Importance(rng.random(7), "wanda", None, 5, halves=rng.random((2, 7))),
    ):
        assert as_plain(importance_from(importance_entry(importance))) == as_plain(importance)
    prior = Prior(rng.random((3, 2)), rng.random(3), "loss", 4, 3.3)
    assert as_plain(prior_from(prior_entry(prior))) == as_plain(prior)


def as_plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return {name: as_plain(item) for name, item in vars(value).items()} if hasattr(value, "__dict__") else value


# Keys


def windows_of(**other: Any) -> TokenWindows:
    values: dict[str, Any] = {"ids": np.arange(12).reshape(3, 4), "dataset": "d", "split": "calibration", "source": "s"}
    return TokenWindows(**(values | other))


def test_every_ingredient_of_a_measurement_is_in_its_key() -> None:
    def importance(*arguments: str, windows: TokenWindows | None = None) -> Any:
        asked = parse_options(["--base_model", "demo", "--importance_method", "taylor", *arguments]).settings
        return importance_key(asked.scores, asked.calibration.seed, windows or windows_of())

    others = [
        importance("--importance_method", "fisher"),
        importance("--gradient_reduction", "sum"),
        importance("--seed", "1"),
        importance(windows=windows_of(ids=np.arange(1, 13).reshape(3, 4))),
        importance(windows=windows_of(ids=np.arange(12).reshape(4, 3))),
        importance(windows=windows_of(dataset="other")),
        importance(windows=windows_of(source="other")),
    ]
    keys = [json.dumps(key) for key in (importance(), *others)]
    assert len(set(keys)) == len(keys)
    same = [
        "--batch_size",
        "4",
        "--temperature",
        "1",
        "--enable_grad_norm",
        "--pruning_ratio",
        "0.5",
        "--epsilon",
        ".1",
    ]
    assert json.dumps(importance(*same)) == keys[0]


def test_keys_of_priors_and_perplexities() -> None:
    plain = ScoreSettings()
    similar = ScoreSettings(prior="similarity", importance_method="fisher")
    windows = windows_of()
    keys = [prior_key(plain, 0, windows), prior_key(similar, 0, windows), prior_key(plain, 0, windows.head(2))]
    keys += [prior_key(plain, 1, windows)]
    assert len({json.dumps(key) for key in keys}) == 4
    assert prior_key(similar, 0, windows) == prior_key(plain, 0, windows) | {"method": "similarity"}
    assert perplexity_key(windows) != perplexity_key(windows_of(text_bytes=7))
    magnitude = ScoreSettings(importance_method="magnitude")
    assert importance_key(magnitude, 0, windows) == importance_key(magnitude, 1, None)


def test_every_ingredient_of_the_machine_and_model_is_in_the_key(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = check_model(str(workspace.model))

    def key(dtype: torch.dtype = torch.float32) -> str:
        return json.dumps(cache_keys.common_key(source, dtype, torch.device("cpu")))

    keys = [key(), key(torch.bfloat16)]
    assert key() == keys[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    keys.append(key())
    torch.set_num_threads(threads)
    for name, value in (
        ("SCHEMA", cache_keys.SCHEMA + 1),
        ("_version", lambda name: "0"),
        ("SOURCES", ("importance",)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(cache_keys, name, value)
            keys.append(key())
    assert len(set(keys)) == len(keys)


def test_a_model_is_told_by_configuration_and_weight_files(tmp_path: Path) -> None:
    from workspace import write_model

    folder = write_model(tmp_path / "model")
    weights, config = folder / "model.safetensors", folder / "config.json"
    seen = [model_identity(check_model(str(folder)))]
    assert model_identity(check_model(str(folder))) == seen[0]
    os.utime(weights, ns=(1, 1))  # another file of the same size and layout has another time
    seen.append(model_identity(check_model(str(folder))))
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    seen.append(model_identity(check_model(str(folder))))
    header_bytes = int.from_bytes(weights.read_bytes()[:8], "little")
    header = json.loads(weights.read_bytes()[8 : 8 + header_bytes])
    header["__metadata__"] = {"format": "pt", "note": ""}
    text = json.dumps(header).encode()
    weights.write_bytes(len(text).to_bytes(8, "little") + text + weights.read_bytes()[8 + header_bytes :])
    os.utime(weights, ns=(1, 1))
    seen.append(model_identity(check_model(str(folder))))
    assert len({json.dumps(identity) for identity in seen}) == 4
    assert [file["name"] for file in seen[0]["files"]] == ["model.safetensors"]


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GLOBAL_PRUNING_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "global-pruning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / ".cache" / "global-pruning"
    monkeypatch.setenv("GLOBAL_PRUNING_CACHE", str(tmp_path / "mine"))
    assert cache_folder(None) == tmp_path / "mine"
    assert cache_folder(str(tmp_path)) == tmp_path
    assert cache_folder("none") is None


# Runs


def test_a_warm_dry_run_needs_no_weights(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other transforms, ratio and caps: the same measurements. Nothing may load the model."""
    kept = ["--cache_dir", str(workspace.root / "warm")]
    workspace.run("warm-first", *kept, "--temperature", "1", "--dry_run")
    arguments = ["--dry_run", "--temperature", "0.5", "--enable_grad_norm", "--pruning_ratio", "0.2"]
    arguments += ["--max_block_ratio", "0.6"]
    expected = workspace.run("uncached", *arguments)

    def refuse(*_: Any) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(session, "load_model", refuse)
    found = workspace.run("warm-second", *kept, *arguments)
    parts = ("model", "windows", "importance", "prior", "dense perplexity")
    assert outcomes(found) == dict.fromkeys(parts, "hit")
    assert observe(found) == observe(expected)
    for name in (
        "analysis/pruning_plan.json",
        "analysis/gradient_diagnosis.json",
        "evaluation/evaluation_results.json",
    ):
        assert (found / name).read_bytes() == (expected / name).read_bytes()


def test_a_warm_run_that_prunes_gives_the_same_model(workspace: Workspace) -> None:
    arguments = ["--cache_dir", str(workspace.root / "prunes"), "--importance_method", "fisher"]
    first, second = (workspace.run(f"prunes-{name}", *arguments) for name in ("cold", "warm"))
    assert set(outcomes(second).values()) == {"hit"}
    for name in ("analysis/pruning_plan.json", "model/model.safetensors", "evaluation/evaluation_results.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_what_is_missing_is_measured(workspace: Workspace) -> None:
    arguments = ["--cache_dir", str(workspace.root / "parts"), "--dry_run"]
    workspace.run("parts-first", *arguments)
    found = outcomes(workspace.run("parts-seed", *arguments, "--seed", "1"))
    assert found == {"model": "hit", "windows": "miss", "importance": "miss", "dense perplexity": "hit"}
    found = outcomes(workspace.run("parts-prior", *arguments, "--temperature", "1"))
    assert found == {
        "model": "hit",
        "windows": "hit",
        "importance": "hit",
        "prior": "miss",
        "dense perplexity": "hit",
    }
    text = f"{workspace.text},{workspace.other_text}"
    run = workspace.run("parts-text", *arguments, "--eval_datasets", text)
    every = json.loads((run / "run.json").read_text())["facts"]["cache"]
    assert every[f"dense perplexity on {workspace.text}"] == "hit"
    assert every[f"dense perplexity on {workspace.other_text}"] == "miss"
    results = json.loads((run / "evaluation" / "evaluation_results.json").read_text())
    assert list(results["dense"]["perplexity"]) == text.split(",")


@pytest.mark.parametrize("spoil", ["damaged", "foreign"])
def test_a_bad_entry_is_said_and_measured_again(workspace: Workspace, spoil: str) -> None:
    folder = workspace.root / f"kept-{spoil}"
    arguments = ["--cache_dir", str(folder), "--dry_run", "--run_evaluation", "none"]
    expected = observe(workspace.run(f"{spoil}-first", *arguments))
    (path,) = folder.glob("importance-*")
    intact = path.read_bytes()
    if spoil == "damaged":
        path.write_bytes(intact[:-8] + bytes(8))
    else:
        workspace.run(f"{spoil}-other", *arguments, "--seed", "1")
        (other,) = set(folder.glob("importance-*")) - {path}
        path.write_bytes(other.read_bytes())
    output = workspace.root / f"{spoil}-second"
    code, _, error = call([*workspace.base_arguments(), *arguments, "--output", str(output)])
    assert code == 0, error
    assert f"{path} is {spoil}" in error
    assert "importance is measured again" in error
    assert outcomes(output) == {"model": "hit", "windows": "hit", "importance": spoil}
    assert observe(output) == expected
    assert path.read_bytes() == intact


def test_a_folder_that_cannot_be_used_stops_nothing(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    output = tmp_path / "run"
    arguments = ["--cache_dir", str(tmp_path / "file"), "--dry_run", "--output", str(output)]
    code, _, error = call([*workspace.base_arguments(), *arguments])
    assert code == 0
    said = [line for line in error.splitlines() if line.startswith("warning: ")]
    assert len(said) == 1  # importance and perplexity are kept under one roof: one sentence does
    assert said[0].startswith(
        f"warning: the cache at {tmp_path / 'file'} stores nothing more of this run, from model on"
    )
    assert json.loads((output / "run.json").read_text())["facts"]["warnings"] == [said[0].removeprefix("warning: ")]


def test_two_runs_at_once_leave_one_whole_entry_each_can_read(workspace: Workspace) -> None:
    folder = workspace.root / "at-once"
    arguments = [*workspace.base_arguments(), "--cache_dir", str(folder), "--dry_run", "--run_evaluation", "none"]
    program = [sys.executable, str(ROOT / "run_global_pruning.py"), *arguments, "--output"]
    both = [
        subprocess.Popen([*program, str(workspace.root / f"at-once-{i}")], stderr=subprocess.PIPE) for i in range(2)
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert sorted(path.name.split("-")[0] for path in folder.iterdir()) == ["importance", "model", "windows"]
    runs = [workspace.root / f"at-once-{i}" for i in range(2)]
    assert observe(runs[0])["plan"] == observe(runs[1])["plan"]
    third = subprocess.run([*program, str(workspace.root / "at-once-2")], capture_output=True, check=False)
    assert third.returncode == 0
    assert set(outcomes(workspace.root / "at-once-2").values()) == {"hit"}


def test_many_writers_never_show_a_reader_half_an_entry(tmp_path: Path) -> None:
    """Two processes write the same entry over and over while this one reads it: every read is whole or not there."""
    code = (
        "import sys; from pathlib import Path; import numpy as np; from core.cache import Entry, write_entry\n"
        "entry = Entry({'a': np.arange(100_000, dtype=np.float64)}, {})\n"
        "for _ in range(60): write_entry(Path(sys.argv[1]), {'k': 1}, entry)\n"
    )
    path = tmp_path / "x.safetensors"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT) for _ in range(2)]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        reads += read_entry(path, {"k": 1}) is not None
    assert [writer.returncode for writer in writers] == [0, 0]
    assert reads
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_remote_code_keeps_nothing(workspace: Workspace) -> None:
    folder = workspace.root / "remote"
    run = workspace.run("remote-run", "--cache_dir", str(folder), "--dry_run", "--trust_remote_code")
    assert set(outcomes(run).values()) == {"off"}
    assert not folder.exists()
