"""One cell of the comparison: a model, a method, a ratio, a seed. Measured once, kept as a line of JSON."""

import ctypes
import fcntl
import gc
import hashlib
import json
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.gpu.clock import wait
from benchmarks.quality.case import Case, pruned
from benchmarks.quality.methods import METHODS
from core.errors import UsageError
from core.files import plain
from core.groups import Architecture
from core.windows import TokenWindows
from evaluation.perplexity import window_nll
from pruning.budget import requested_params

DENSE = "dense"


@dataclass(frozen=True)
class Setting:
    """What a cell's figures depend on; equal settings mean equal figures.

    model: folder name. weights: of its safetensors, first half of the SHA-256. ratio: of the parameters that ratio_of
    names, ``prunable`` or ``total``. samples × seq_len: calibration. part: of the texts; at most eval_samples × seq_len
    tokens of each. python: whose standard library the texts are. calibration: its texts, as ``--dataset`` names them.
    recover_tokens: that a recovery trains on, 0 for methods without one. texts: that loss is read on, with commas.
    device: ``cpu`` or ``cuda``; they round differently, and so the model's own text is another there.

    A line of results without the last five keys is from before there was a choice.
    """

    model: str
    weights: str
    method: str
    ratio: float
    seed: int
    samples: int
    seq_len: int
    part: str
    eval_samples: int
    python: str
    calibration: str = "pydoc"
    ratio_of: str = "prunable"
    recover_tokens: int = 0
    texts: str = "pydoc,code"
    device: str = "cpu"

    def of_prunable(self, architecture: Architecture) -> float:
        """The share of the prunable parameters that is asked for. UsageError where there are not so many."""
        if self.ratio_of == "prunable":
            return self.ratio
        share = requested_params(architecture, self.ratio, "total") / architecture.prunable_params
        if share >= 1:
            most = architecture.prunable_params / architecture.total_params
            raise UsageError(f"--ratios {self.ratio} --ratio_of total: only {most:.2f} of all parameters are prunable")
        return share


@dataclass(frozen=True)
class Cell:
    """achieved: removed share of the prunable parameters. nll: text -> nats per token of each window, so that two
    methods can be compared window by window. seconds: from the dense model and the windows to the pruned model, what an
    earlier cell had measured included. peak_bytes: resident size, or on a GPU memory of the device, above what the
    process had before; where an earlier cell had measured, that cell's peak holds the measurement."""

    setting: Setting
    achieved: float
    nll: dict[str, list[float]]
    seconds: float
    peak_bytes: int

    def loss(self, text: str) -> float:
        """Nats per token; windows are of one length."""
        return statistics.mean(self.nll[text])


def measure(setting: Setting, case: Case, texts: dict[str, TokenWindows]) -> Cell:
    """Prune, read the losses, put the model back."""
    if setting.method == DENSE:
        return Cell(setting, 0.0, losses(case, texts), 0.0, 0)
    case.remembered_s = 0.0
    groups, ratio = case.architecture.groups, setting.of_prunable(case.architecture)
    device = case.model.device
    with PeakOfGpu(device) if device.type == "cuda" else PeakMemory() as memory:
        start = time.perf_counter()
        with pruned(METHODS[setting.method], case, ratio) as keep:
            wait(device)
            seconds = time.perf_counter() - start + case.remembered_s
            peak = memory.stop()
            achieved = float(groups.cost[~keep].sum() / groups.cost.sum())
            return Cell(setting, achieved, losses(case, texts), seconds, peak)


def losses(case: Case, texts: dict[str, TokenWindows]) -> dict[str, list[float]]:
    """Nats per predicted token of each window of each text, to six decimals."""
    found = {}
    for name, windows in texts.items():
        nll = window_nll(case.model, windows.ids, batch_size=None, description=f"loss on {name}")
        found[name] = (nll / (windows.seq_len - 1)).round(6).tolist()
    return found


class PeakMemory:
    """Peak resident size above that at the start, sampled every 5 ms (Linux). What is free goes back to it first."""

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self.start = self.highest = resident_bytes()
        self.running = True
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def _sample(self) -> None:
        while self.running:
            self.highest = max(self.highest, resident_bytes())
            time.sleep(0.005)

    def stop(self) -> int:
        self.running = False
        self.thread.join()
        return max(self.highest, resident_bytes()) - self.start

    def __exit__(self, *_: object) -> None:
        self.running = False


class PeakOfGpu:
    """The same of what tensors take on a GPU, as its allocator counts them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> "PeakOfGpu":
        gc.collect()
        wait(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self.start = torch.cuda.memory_allocated(self.device)
        return self

    def stop(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) - self.start

    def __exit__(self, *_: object) -> None:
        pass


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def weights_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:32]


# The file of results: a line a cell, so that an interrupted run goes on and two runs may write side by side.


def read_cells(path: Path) -> dict[Setting, Cell]:
    """A line that a killed run left half written is passed over: its cell is measured again."""
    cells = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        setting = Setting(**values.pop("setting"))
        cells[setting] = Cell(setting, **values)
    return cells


def append_cell(path: Path, cell: Cell) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file, _locked(file.fileno()):
        file.seek(0)
        unfinished = not file.read().endswith("\n") and file.tell() > 0
        file.write("\n" * unfinished + json.dumps(plain(asdict(cell)), allow_nan=False) + "\n")


@contextmanager
def _locked(handle: int) -> Iterator[None]:
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)
