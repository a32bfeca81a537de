"""What may still be taken of a device's memory."""

from pathlib import Path

import pytest
import torch

from core import memory
from core.memory import free_bytes, has_room


def test_free_memory_is_told_for_a_cpu_and_leaves_half(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9000 kB\nMemAvailable:  8000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert free_bytes(cpu) == 8000 * 1024
    assert has_room(4000 * 1024, cpu)
    assert not has_room(4000 * 1024 + 1, cpu)
    assert has_room(3000 * 1024, cpu, beside=2000 * 1024)
    assert not has_room(3000 * 1024 + 1, cpu, beside=2000 * 1024)
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\nfile 5\n")
    assert free_bytes(cpu) == 2000000
    meminfo.unlink()
    assert free_bytes(cpu) is None
    assert free_bytes(torch.device("meta")) is None
    assert not has_room(1, cpu)
