"""Garbage collection comes back, however a command ends."""

import gc

import pytest

import run_global_pruning
from core.collection import collect_again, collected_later


def test_it_is_off_until_it_is_asked_back() -> None:
    with collected_later():
        assert not gc.isenabled()
        collect_again()
        assert gc.isenabled()
    assert gc.isenabled()


def test_who_switched_it_off_finds_it_off() -> None:
    gc.disable()
    try:
        with collected_later():
            collect_again()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_an_exception_brings_it_back() -> None:
    with pytest.raises(RuntimeError), collected_later():
        raise RuntimeError
    assert gc.isenabled()


def test_a_refused_command_brings_it_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_global_pruning.main(["--base_model", "./nowhere", "--device", "cpu"]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert gc.isenabled()
