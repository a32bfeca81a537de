"""What people do with a folder from the hub, as checks that need torch and transformers only.

In the default suite ``test_round_trips.py`` runs them; ``tests/compat/releases.py`` runs this file as a program in
environments with older releases: ``python round_trips.py FOLDER ...`` prints one JSON object, folder -> check ->
"ok", "skipped: why" or the error. A folder holds ``expected.pt`` with what the model computed before it was saved.
"""

import contextlib
import importlib
import importlib.util
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

NEW_TOKENS = 6
TOLERANCE = 1e-5  # relative, float32; another release may order the same sums differently


class SkippedError(Exception):
    """An optional package is not installed."""


def load(folder: Path, **options: Any) -> Any:
    """As a reader of the model card does; gemma2 by eager attention, since sdpa, the default before 5.23, leaves its
    soft caps out (of dense models too)."""
    if json.loads((folder / "config.json").read_text(encoding="utf-8")).get("attn_logit_softcapping"):
        options["attn_implementation"] = "eager"
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()


def expected_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "expected.pt")


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    error = float((actual - expected).norm() / expected.norm())
    assert error <= TOLERANCE, f"relative error {error:.1e}"


def generated(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        **options,
    )


def loads(folder: Path) -> None:
    expected = expected_of(folder)
    model = load(folder)
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    assert_close(logits(model, expected["ids"]), expected["logits"])
    assert AutoTokenizer.from_pretrained(folder, trust_remote_code=True)("ba be")["input_ids"]


def generates_with_a_dynamic_cache(folder: Path) -> None:
    expected = expected_of(folder)
    assert torch.equal(generated(load(folder), expected["ids"]), expected["generated"]), "other tokens"


def generates_with_a_static_cache(folder: Path) -> None:
    expected = expected_of(folder)
    found = generated(load(folder), expected["ids"], cache_implementation="static")
    assert torch.equal(found, expected["generated"]), "other tokens"


def saves_and_loads_again(folder: Path) -> None:
    expected = expected_of(folder)
    with tempfile.TemporaryDirectory() as again:
        load(folder).save_pretrained(again)
        assert_close(logits(load(Path(again)), expected["ids"]), expected["logits"])


def trains_with_gradient_checkpointing(folder: Path) -> None:
    ids = expected_of(folder)["ids"]
    gradients = []
    for checkpointing in (True, False):
        model = load(folder).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append(model.get_input_embeddings().weight.grad)
    assert_close(*gradients)


def compiles(folder: Path) -> None:
    expected = expected_of(folder)
    torch._dynamo.reset()
    assert_close(logits(torch.compile(load(folder), backend="eager"), expected["ids"]), expected["logits"])


def spreads_over_devices(folder: Path) -> None:
    _optional("accelerate")
    expected = expected_of(folder)
    assert_close(logits(load(folder, device_map="auto"), expected["ids"]).cpu(), expected["logits"])


def adapts_with_lora(folder: Path) -> None:
    """Attach, train one step, merge, save, load: the loaded model computes what the trained one did."""
    peft = _optional("peft")
    ids = expected_of(folder)["ids"]
    torch.manual_seed(0)
    adapter = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(load(folder), adapter)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    trained = logits(model, ids)
    assert not torch.equal(trained, expected_of(folder)["logits"]), "one step changed nothing"
    with tempfile.TemporaryDirectory() as merged:
        model.merge_and_unload().save_pretrained(merged)
        assert_close(logits(load(Path(merged)), ids), trained)


CHECKS: dict[str, Callable[[Path], None]] = {
    "load": loads,
    "generate, dynamic cache": generates_with_a_dynamic_cache,
    "generate, static cache": generates_with_a_static_cache,
    "save_pretrained, load": saves_and_loads_again,
    "gradient checkpointing": trains_with_gradient_checkpointing,
    "torch.compile": compiles,
    'device_map="auto"': spreads_over_devices,
    "peft LoRA, merge, load": adapts_with_lora,
}


def _optional(package: str) -> Any:
    if importlib.util.find_spec(package) is None:
        raise SkippedError(f"{package} is not installed")
    return importlib.import_module(package)


def outcome(check: Callable[[Path], None], folder: Path) -> str:
    try:
        check(folder)
    except SkippedError as reason:
        return f"skipped: {reason}"
    except Exception as error:  # a table of what works and what does not is the purpose
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return "ok"


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        table = {
            folder.name: {name: outcome(check, folder) for name, check in CHECKS.items()}
            for folder in map(Path, sys.argv[1:])
        }
    print(json.dumps(table))


if __name__ == "__main__":
    main()
