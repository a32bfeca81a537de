"""Processes of one run, forked from one that has imported everything: ``torchrun`` would import it in each of them.

    python forked_ranks.py FOLDER      # every case of CASES with two ranks; a JSON object of what became of them

Each case plays the stages of a run behind the program's own door (``cli.doors``).
"""

import copy
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers.models.llama.modeling_llama
from measured_by_engine import by_engine, measured, with_a_window_of_inf
from tiny_models import CONFIGS, build, random_plan, token_ids, windows_of
from torch.distributed import TCPStore
from workspace import Workspace

import diagnostics.page.run_page
import run.deliver
import run.finish
import run_global_pruning
from cli.doors import prune_command
from core import ranks
from core.errors import NumericalError
from importance import layer_sweep
from importance.block_losses import measure_block_losses
from importance.over_windows import TimeUpError
from models.architecture import architecture_of
from models.family_table import family_of
from pruning.recovery import checkpoints, distill, trainer
from pruning.recovery.distill import DistilSettings, distil
from run.deliver import cut_model

COUNT, BROKEN = 2, 99
# Relative and absolute; a step of Adam makes much of the last digit of a gradient near 0.
TOLERANCES = {"repaired": (1e-3, 1e-3), "recovery": (1e-2, 1e-4), "recovered weights": (0.0, 0.05)}
TOLERANCES |= {f"divergence, lora {lora}": (1e-3, 1e-6) for lora in (None, 4)}
TOLERANCES |= {f"distilled weights, lora {lora}": (0.0, 2e-3) for lora in (None, 4)}
IMPORTED = (diagnostics.page.run_page, run.deliver, run.finish, transformers.models.llama.modeling_llama)
Run = Callable[..., Any]
RECOVERED = ("--reconstruct", "least_squares", "--recover", "blocks", "--num_samples", "16")
NOTHING = ["--base_model", "demo", "--dataset", "pydoc", "--output"]


def measures(rank: int, folder: Path) -> int:
    """Both ranks together find what one finds alone, and find the same to the last bit."""
    cases = {name: partial(measured, name) for name in CONFIGS} | {"inf": with_a_window_of_inf}
    alone = {name: measure() for name, measure in cases.items()} if rank == 0 else {}

    def play(settings: Any, *, argv: Any) -> Any:
        for name, measure in cases.items():
            for part, values in measure().items():
                ranks.insist_on_same(values.tobytes(), f"{part} of {name}", "find out why")
                if rank == 0:
                    wanted = alone[name][part.replace("sharded", "resident")]
                    what = part.removesuffix(", resident").removesuffix(", sharded")
                    rtol, atol = TOLERANCES.get(what, (1e-4, 1e-12))
                    np.testing.assert_allclose(values, wanted, rtol, atol, err_msg=f"{name}: {part}")
        assert _ends_in_time() is False
        return SimpleNamespace(report="all alike")

    return prune_command([*NOTHING, str(folder)], play)


def _ends_in_time() -> bool:
    """Of a measurement that the second rank alone gives up."""
    model = build("llama")
    family, windows = family_of("llama"), windows_of(token_ids(rows=4, length=12))
    architecture = architecture_of(model, family)
    keep = random_plan(architecture, seed=3).keep
    in_time = []
    for held in by_engine(model).values():
        try:
            measure_block_losses(held, family, architecture, windows, keep, is_late=lambda: not ranks.is_first())
            in_time.append(True)
        except TimeUpError:
            in_time.append(False)
    return any(in_time)


def fails(rank: int, folder: Path) -> int:
    """The second rank meets NaN; the first is about to exchange something with it."""

    def play(settings: Any, *, argv: Any) -> Any:
        if rank == 1:
            raise NumericalError("NaN or Inf in the loss")
        return ranks.gathered(rank, "a number")

    return prune_command([*NOTHING, str(folder)], play)


def interrupted(rank: int, folder: Path) -> int:
    """The first rank gets SIGTERM while it waits for the second."""

    def play(settings: Any, *, argv: Any) -> Any:
        processes = ranks.gathered(os.getpid(), "processes")
        if rank == 1:
            time.sleep(0.5)
            os.kill(processes[0], signal.SIGTERM)
        return ranks.gathered(rank, "a number")

    return prune_command([*NOTHING, str(folder)], play)


def distils(rank: int, folder: Path) -> int:
    """Where one process lacks memory both take smaller passes; killed, both go on from one checkpoint."""
    model, family = build("llama"), family_of("llama")
    plan = random_plan(architecture_of(model, family), seed=3)
    ids = token_ids(rows=20, length=12).numpy()
    vars(checkpoints)["EVERY_S"] = 0.0
    step_end, alone, passes = trainer.Watching.on_step_end, distill.divergence, []

    def trained(kept: checkpoints.Checkpoints | None) -> Any:
        small = cut_model(copy.deepcopy(model), family, plan, stock=False).requires_grad_(False)
        report = distil(small, model, family, ids[:16], ids[16:], DistilSettings(8 * 8 * 12, step_tokens=8 * 12), kept)
        return report, torch.cat([p.flatten() for p in small.parameters()]).numpy().tobytes()

    def short(student: Any, teacher: Any) -> Any:
        passes.append(len(student))
        if rank == 1 and len(student) > 2:
            raise torch.OutOfMemoryError("for the test")
        return alone(student, teacher)

    def killed(self: Any, args: Any, state: Any, control: Any, **how: Any) -> None:
        step_end(self, args, state, control, **how)
        if state.global_step == 6:
            raise ZeroDivisionError

    def play(settings: Any, *, argv: Any) -> Any:
        vars(distill)["divergence"] = short
        whole, weights = trained(None)
        assert (passes, whole.steps) == ([4, 4, 2], 8)
        kept = checkpoints.Checkpoints(folder / "kept", {"of": "a test"}, [])
        trainer.Watching.on_step_end = killed  # type: ignore[method-assign]
        try:
            trained(kept)
        except ZeroDivisionError:
            trainer.Watching.on_step_end = step_end  # type: ignore[method-assign]
        ranks.gathered(rank, "both have ended")
        files = {path.name for path in (kept.folder / "checkpoint-5").iterdir()}
        assert files >= {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors", "optimizer.pt"}
        report, resumed = trained(kept)
        assert report.resumed_from_step == 5
        assert resumed == weights
        ranks.insist_on_same(resumed, "weights", "find out why")
        ranks.insist_on_same(repr(report).encode(), "report", "find out why")
        return SimpleNamespace(report="all alike")

    return prune_command([*NOTHING, str(folder / "output")], play)


def differs(rank: int, folder: Path) -> int:
    """The ranks have come to different plans."""

    def play(settings: Any, *, argv: Any) -> Any:
        ranks.insist_on_same(bytes(rank), "plan", "find out why")

    return prune_command([*NOTHING, str(folder)], play)


def strays(rank: int, folder: Path) -> int:
    """A bug: the ranks are at different places of the program."""

    def play(settings: Any, *, argv: Any) -> Any:
        return ranks.gathered(rank, f"place {rank}")

    return prune_command([*NOTHING, str(folder)], play)


def killed(victim: int, rank: int, folder: Path) -> int:
    """A whole run, of which one rank is killed when the model is saved and is to be proved."""

    def die(*_: Any) -> list[Path]:
        if rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return []

    vars(run.deliver)["prove"] = die
    return whole(rank, folder)


def dies_in_a_sweep(rank: int, folder: Path) -> int:
    """The second rank is killed between two exchanges of weights."""

    class Dying(layer_sweep.LayerSweep):
        def _count(self, layer: int, *given: Any) -> None:
            if rank == 1 and layer == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            super()._count(layer, *given)

    vars(layer_sweep)["LayerSweep"] = Dying
    return whole(rank, folder, "--engine", "sharded")


def whole(rank: int, folder: Path, *asked: str) -> int:
    """A run from door to door."""
    workspace = Workspace(folder.parent, *(folder.parent / name for name in ("model", "text.txt", "", "")))
    return run_global_pruning.main([*workspace.base_arguments(), *asked, "--output", str(folder)])


CASES: dict[str, Callable[[int, Path], int]] = {
    "measures": measures,
    "fails": fails,
    "interrupted": interrupted,
    "distils": distils,
    "differs": differs,
    "strays": strays,
    "sharded": lambda rank, folder: whole(rank, folder, "--engine", "sharded", *RECOVERED),
    "sharded_killed": dies_in_a_sweep,
    "first_killed": lambda rank, folder: killed(0, rank, folder),
    "second_killed": lambda rank, folder: killed(1, rank, folder),
}


def started(case: str, rank: int, port: int, folder: Path) -> int:
    """The process number of a fork that plays one rank; its words go to files beside the folder."""
    child = os.fork()
    if child:
        return child
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(COUNT), "LOCAL_RANK": str(rank)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(COUNT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    code = BROKEN
    try:
        code = CASES[case](rank, folder)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def played(case: str, folder: Path) -> dict[str, Any]:
    store = TCPStore("127.0.0.1", 0, COUNT, is_master=True, wait_for_workers=False)  # as torchrun's agent holds one
    children = [started(case, rank, store.port, folder) for rank in range(COUNT)]
    codes = _codes_of(children)
    said = {name: Path(f"{folder}.{name}").read_text() for name in ("out", "err")}
    files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return {"codes": codes, "files": files, **said}


def _codes_of(children: list[int]) -> list[int]:
    """By rank. Where a case itself fails, its other rank would wait for ever, and is killed."""
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        child, status = os.wait()
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child] == BROKEN:
            for other in set(children) - set(codes):
                os.kill(other, signal.SIGKILL)
    return [codes[child] for child in children]


if __name__ == "__main__":
    root = Path(sys.argv[1])
    print(json.dumps({case: played(case, root / case) for case in CASES}))
