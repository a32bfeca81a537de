"""What the tests of the Python API share: short calls, and all that a model and a process hold."""

import logging
import os
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from workspace import Workspace

import global_pruning as gp

ROOT = Path(__file__).resolve().parents[2]
SMALL: dict[str, Any] = {"num_samples": 6, "seq_len": 16, "device": "cpu", "say": gp.silent}
IN_MEMORY = {name: value for name, value in SMALL.items() if name != "device"}


def loaded(workspace: Workspace, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A model as somebody has it in the middle of their own work: in train mode, with gradients and a hook."""
    model = AutoModelForCausalLM.from_pretrained(workspace.model, dtype=dtype).train()
    model.lm_head.register_forward_hook(lambda *_: None)
    parameters = list(model.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    parameters[1].requires_grad_(False)
    return model, AutoTokenizer.from_pretrained(workspace.model)


def state_of(model: Any) -> dict[str, Any]:
    """All that a user may notice: weights, gradients, flags, modes, hooks, configuration."""
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "places": [parameter.data_ptr() for parameter in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [
            (list(module._forward_hooks), list(module._forward_pre_hooks), list(module._backward_hooks))
            for module in model.modules()
        ],
        "own": [sorted(vars(module)) for module in model.modules()],
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
    }


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(equal(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)


def process_state() -> dict[str, Any]:
    """All that a call could leave behind in the process."""
    return {
        "warnings": list(warnings.filters),
        "random": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[index]  # noqa: NPY002
        "torch": torch.get_rng_state(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "filled": torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "verbosity": transformers.logging.get_verbosity(),
        "bars": transformers.utils.logging.is_progress_bar_enabled(),
        "levels": {name: logging.getLogger(name).level for name in ("", "transformers", "datasets", "matplotlib")},
        "handlers": {name: list(logging.getLogger(name).handlers) for name in ("", "transformers")},
        "environment": dict(os.environ),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
        "numpy errors": np.geterr(),
        "folder": Path.cwd(),
        "umask": _umask(),
        "path": list(sys.path),
    }


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def in_a_process(code: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
