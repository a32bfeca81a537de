"""A saved folder loads in a fresh process, by the Auto classes, with the in-memory model's logits."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import CONFIGS, build, random_plan, token_ids
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from models.architecture import architecture_of
from models.family_table import FAMILIES, family_of
from models.loading import check_model, load_model
from models.narrow import empty_narrow_model
from models.saving import save_checkpoint
from models.shipped import render
from pruning.surgery import operate

IDS = token_ids(rows=2, length=12)
FRESH_PROCESS = """
import sys, torch
from pathlib import Path
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
for folder in map(Path, sys.argv[1:]):
    expected = torch.load(folder / "expected.pt")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **expected["options"])
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    ids = expected["ids"]
    with torch.no_grad():
        error = (model(ids).logits - expected["logits"]).abs().max() / expected["logits"].abs().max()
        assert error <= 1e-6, (folder, error)
        mask = torch.ones_like(ids)
        text = model.generate(ids, attention_mask=mask, max_new_tokens=5, min_new_tokens=5, do_sample=False)
        assert torch.equal(text, expected["generated"]), folder
        again = folder.with_name(folder.name + "-again")
        model.save_pretrained(again)
        reloaded = AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True, **expected["options"])
        assert torch.equal(reloaded(ids).logits, model(ids).logits), folder
        base = AutoModel.from_pretrained(folder, trust_remote_code=True, **expected["options"])
        assert base(ids).last_hidden_state.shape[:2] == ids.shape
    assert AutoTokenizer.from_pretrained(folder, trust_remote_code=True)("a b")["input_ids"]
    print(folder.name, "ok")
"""


def tokenizer() -> Any:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {chr(97 + i): 3 + i for i in range(26)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def pruned(model: Any, removed_layers: tuple[int, ...] = ()) -> Any:
    family = family_of(model.config.model_type)
    plan = random_plan(architecture_of(model, family), seed=3, removed_layers=removed_layers)
    return operate(model, empty_narrow_model(model, family, plan), family, plan)


def save(model: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    family = family_of(model.config.model_type)
    return save_checkpoint(model, family, tokenizer(), folder, dtype)


def test_every_family_loads_in_a_fresh_process(tmp_path: Path) -> None:
    folders = []
    for number, name in enumerate(sorted(CONFIGS)):
        model = pruned(build(name), removed_layers=(1,) if number % 2 else ())
        model.generation_config.repetition_penalty = 1.25
        folder = save(model, tmp_path / name)
        mask = torch.ones_like(IDS)
        with torch.no_grad():
            expected = {
                "ids": IDS,
                "logits": model(IDS).logits,
                "generated": model.generate(
                    IDS, attention_mask=mask, max_new_tokens=5, min_new_tokens=5, do_sample=False
                ),
                "options": {"attn_implementation": model.config._attn_implementation},
            }
        torch.save(expected, folder / "expected.pt")
        folders.append(str(folder))
        assert json.loads((folder / "generation_config.json").read_text())["repetition_penalty"] == 1.25
    done = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, *folders],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [word for name in sorted(CONFIGS) for word in (name, "ok")]


def test_the_config_names_every_layers_widths_and_the_rope_twice(tmp_path: Path) -> None:
    model = pruned(build("llama"))
    config = json.loads((save(model, tmp_path / "model") / "config.json").read_text())
    assert config["model_type"] == "pruned_llama"
    assert list(config["per_layer_config"]) == ["0", "1", "2"]
    for index, layer in enumerate(model.model.layers):
        widths = config["per_layer_config"][str(index)]
        assert widths["intermediate_size"] == layer.mlp.down_proj.in_features
        assert widths["num_attention_heads"] == layer.self_attn.o_proj.in_features // config["head_dim"]
        assert widths["num_key_value_heads"] == layer.self_attn.k_proj.out_features // config["head_dim"]
    assert config["rope_parameters"]["rope_theta"] == config["rope_theta"] == 5000.0
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}


def test_gemma3_keeps_both_rope_bases_under_their_older_names(tmp_path: Path) -> None:
    config = json.loads((save(pruned(build("gemma3_text")), tmp_path / "model") / "config.json").read_text())
    assert config["rope_local_base_freq"] == config["rope_parameters"]["sliding_attention"]["rope_theta"]
    assert config["rope_theta"] == config["rope_parameters"]["full_attention"]["rope_theta"]


def test_weights_go_back_to_the_checkpoints_dtype_and_memory_keeps_its_own(tmp_path: Path) -> None:
    """A bfloat16 checkpoint computed in float32 is saved in bfloat16, which loses nothing."""
    model = pruned(build("llama"))
    for parameter in model.parameters():  # not .to(): that would round the rotary tables as well
        parameter.data = parameter.data.bfloat16().float()
    before = model(IDS).logits
    folder = save(model, tmp_path / "model", torch.bfloat16)
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert model.dtype == torch.float32
    source = check_model(str(folder))
    reloaded = load_model(source, torch.device("cpu"), torch.float32)
    assert torch.equal(reloaded(IDS).logits, before)


def test_a_pruned_folder_can_be_pruned_again_without_running_its_python(tmp_path: Path) -> None:
    first = pruned(build("qwen3"))
    widths = architecture_of(first, family_of("qwen3"))
    folder = save(first, tmp_path / "first")
    for file in folder.glob("*.py"):
        file.write_text("raise SystemExit('the folder\\'s Python must not run')")
    source = check_model(str(folder))
    assert source.architecture == widths
    model = load_model(source, torch.device("cpu"), torch.float32)
    again = pruned(model, removed_layers=(0,))
    second = save(again, tmp_path / "second")
    reloaded = load_model(check_model(str(second)), torch.device("cpu"), torch.float32)
    assert torch.equal(reloaded(IDS).logits, again(IDS).logits)
    assert reloaded.config.num_hidden_layers == 2


def test_an_interrupted_save_leaves_the_earlier_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pruned(build("llama"))
    folder = save(model, tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def interrupted(*_args: Any, **_kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("models.saving.write_tensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_shipped_files_are_short_and_need_transformers_only(family: Any) -> None:
    for name, text in render(family).items():
        compile(text, name, "exec")
        assert len(text.splitlines()) < 100
        assert "\0" not in text
        if family.model_type != "llama":
            assert "llama" not in text.lower()
        imports = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
        assert imports <= {"copy", "torch", "transformers", ""}
