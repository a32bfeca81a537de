"""Stock checkpoints: uniform plans of every family load without remote code, and compute what the narrow model does."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_checkpoint import tokenizer
from tiny_models import CONFIGS, SHARED, build, plan_keeping, random_plan, token_ids
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Phi3Config

from core.errors import ModelError
from core.groups import LayerShape
from core.plan import PruningPlan
from models.architecture import architecture_of
from models.family_table import family_of
from models.loading import check_model, load_model
from models.narrow import empty_narrow_model
from models.stock import possible_kv_widths, save_stock_checkpoint, stock_config, stock_model
from pruning.limits import Limits
from pruning.surgery import operate
from pruning.targets import limits_for
from pruning.uniform import plan_uniform

IDS = token_ids(rows=2, length=12)
FRESH_PROCESS = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in map(Path, sys.argv[1:]):
    expected = torch.load(folder / "expected.pt")
    model = AutoModelForCausalLM.from_pretrained(folder, **expected["options"])
    assert type(model).__module__.startswith("transformers.models."), type(model)
    ids = expected["ids"]
    with torch.no_grad():
        error = (model(ids).logits - expected["logits"]).abs().max() / expected["logits"].abs().max()
        assert error <= 1e-6, (folder, error)
        mask = torch.ones_like(ids)
        text = model.generate(ids, attention_mask=mask, max_new_tokens=5, min_new_tokens=5, do_sample=False)
        assert torch.equal(text, expected["generated"]), folder
    assert AutoTokenizer.from_pretrained(folder)("a b")["input_ids"]
    print(folder.name, model.config.model_type)
"""


def uniform_plan(model: Any, kv_widths: tuple[int, ...], ratio: float = 0.3, seed: int = 0) -> PruningPlan:
    family = family_of(model.config.model_type)
    architecture = architecture_of(model, family)
    scores = np.random.default_rng(seed).random(len(architecture.groups))
    scores[architecture.groups.kind == 0] *= 0.5  # so that KV groups are among what goes
    limits = limits_for("stock", architecture, Limits(), kv_widths=kv_widths)
    return plan_uniform(architecture, scores, np.argsort(scores), ratio=ratio, ratio_of="prunable", limits=limits)


def keeping(model: Any, kv: int, channels: int, removed_layers: tuple[int, ...] = ()) -> PruningPlan:
    """The last groups of every block go."""
    architecture = architecture_of(model, family_of(model.config.model_type))
    groups = architecture.groups
    return plan_keeping(architecture, groups.index < np.where(groups.kind == 0, kv, channels), removed_layers)


def narrow(model: Any, plan: PruningPlan) -> Any:
    family = family_of(model.config.model_type)
    return operate(model, empty_narrow_model(model, family, plan), family, plan)


def stock(model: Any, plan: PruningPlan) -> tuple[Any, str]:
    family = family_of(model.config.model_type)
    return stock_model(narrow(model, plan), family)


def test_every_family_loads_without_remote_code(tmp_path: Path) -> None:
    folders, types = [], {}
    for name in sorted(CONFIGS):
        dense = build(name)
        family = family_of(dense.config.model_type)
        plan = uniform_plan(dense, possible_kv_widths(dense.config, family, architecture_of(dense, family)))
        model = narrow(dense, plan)
        model.generation_config.repetition_penalty = 1.25
        own, types[name] = stock_model(model, family)
        folder = save_stock_checkpoint(own, tokenizer(), tmp_path / name, torch.float32)
        with torch.no_grad():
            logits = model(IDS).logits
            assert torch.equal(own(IDS).logits, logits)
            expected = {
                "ids": IDS,
                "logits": logits,
                "generated": model.generate(
                    IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=5, min_new_tokens=5, do_sample=False
                ),
                "options": {"attn_implementation": model.config._attn_implementation},
            }
        torch.save(expected, folder / "expected.pt")
        folders.append(str(folder))
        names = {path.name for path in folder.iterdir()}
        assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
        assert not [found for found in names if found.endswith(".py")]
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", FRESH_PROCESS, *folders],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert dict(line.split() for line in done.stdout.splitlines()) == types
    assert {name.split("-")[0] for name, found in types.items() if found != name.split("-")[0]} <= {"llama"}


def test_the_config_names_the_widths_once(tmp_path: Path) -> None:
    own, model_type = stock(build("gemma3_text"), keeping(build("gemma3_text"), 2, 10, removed_layers=(0,)))
    config = json.loads(
        (save_stock_checkpoint(own, tokenizer(), tmp_path / "m", torch.float32) / "config.json").read_text()
    )
    assert model_type == config["model_type"] == "gemma3_text"
    assert config["architectures"] == ["Gemma3ForCausalLM"]
    widths = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "num_hidden_layers")
    assert [config[name] for name in widths] == [4, 2, 8, 10, 2]
    assert config["layer_types"] == ["full_attention", "sliding_attention"]
    assert not {"auto_map", "per_layer_config", "allow_global_per_layer_attribute_access"} & set(config)
    assert config["rope_local_base_freq"] == config["rope_parameters"]["sliding_attention"]["rope_theta"]


def test_llama_becomes_mistral_where_that_is_exact() -> None:
    # 3 of 4 KV groups are 6 query heads, which do not divide 64.
    dense = build("llama")
    model = narrow(dense, keeping(build("llama"), 3, 11))
    own, model_type = stock_model(model, family_of("llama"))
    assert model_type == "mistral"
    assert type(own).__name__ == "MistralForCausalLM"
    assert own.config.sliding_window is None
    assert not hasattr(own.config, "mlp_bias")
    long = token_ids(rows=2, length=100)
    mask = torch.ones_like(long)
    mask[0, :40] = 0  # left padding
    with torch.no_grad():
        assert torch.equal(own(long).logits, model(long).logits)
        assert torch.equal(own(long, attention_mask=mask).logits, model(long, attention_mask=mask).logits)
    even, model_type = stock(build("llama"), keeping(build("llama"), 2, 11))
    assert (model_type, even.config.head_dim) == ("llama", 8)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear"},
        {"rope_type": "yarn", "original_max_position_embeddings": 32},
        {
            "rope_type": "llama3",
            "original_max_position_embeddings": 32,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_mistral_scales_rotations_as_llama_does(scaling: dict[str, Any]) -> None:
    rope = {"rope_theta": 5000.0, "factor": 4.0} | scaling
    torch.manual_seed(0)
    dense = AutoModelForCausalLM.from_config(LlamaConfig(**SHARED, rope_parameters=rope)).eval().requires_grad_(False)
    model = narrow(dense, keeping(dense, 3, 9))
    own, model_type = stock_model(model, family_of("llama"))
    assert model_type == "mistral"
    long = token_ids(rows=1, length=100)
    assert torch.equal(own(long).logits, model(long).logits)
    # Tables built by the configuration alone, as a fresh load does, are the same ones.
    fresh = AutoModelForCausalLM.from_config(own.config).eval()
    assert torch.equal(fresh.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert fresh.model.rotary_emb.attention_scaling == model.model.rotary_emb.attention_scaling


def test_nothing_is_copied_and_ties_stay_tied() -> None:
    model = narrow(build("llama-biased-tied-mha"), keeping(build("llama-biased-tied-mha"), 4, 10))
    own, _ = stock_model(model, family_of("llama"))
    parameters = dict(model.named_parameters())
    assert all(parameters[name] is parameter for name, parameter in own.named_parameters())
    assert own.lm_head.weight is own.model.embed_tokens.weight
    assert not [name for name, tensor in own.state_dict().items() if tensor.is_meta]
    assert not own.training


def test_weights_are_stored_in_the_dtype_asked_for_and_load_again(tmp_path: Path) -> None:
    own, _ = stock(build("qwen2"), keeping(build("qwen2"), 3, 10))
    for parameter in own.parameters():
        parameter.data = parameter.data.bfloat16().float()
    folder = save_stock_checkpoint(own, tokenizer(), tmp_path / "model", torch.bfloat16)
    source = check_model(str(folder))
    assert source.config.model_type == "qwen2"
    assert source.stored_dtype == torch.bfloat16
    model = load_model(source, torch.device("cpu"), torch.float32)
    assert torch.equal(model(IDS).logits, own(IDS).logits)
    again = narrow(model, keeping(model, 2, 10))  # a stock folder is a dense model like any other
    assert stock_model(again, family_of("qwen2"))[0].config.num_key_value_heads == 2


def test_an_empty_model_is_written_from_tensors_given_one_by_one(tmp_path: Path) -> None:
    dense, family = build("llama"), family_of("llama")
    plan = keeping(dense, 3, 10)
    empty, model_type = stock_model(empty_narrow_model(dense, family, plan), family)
    empty.generation_config = dense.generation_config
    assert model_type == "mistral"
    assert empty.device.type == "meta"
    model = narrow(dense, plan)
    folder = tmp_path / "model"
    save_stock_checkpoint(empty, tokenizer(), folder, torch.float32, tensors=model.state_dict())
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(IDS).logits, model(IDS).logits)


def test_possible_kv_widths_are_those_the_classes_take() -> None:
    possible = {}
    for name in CONFIGS:
        config = CONFIGS[name]()
        model = build(name)
        family = family_of(config.model_type)
        possible[name] = possible_kv_widths(config, family, architecture_of(model, family))
    # Two query heads a KV head, 64 hidden: 2, 4, 6, 8 heads, of which 6 does not divide it.
    assert possible["gemma2"] == possible["gemma3_text"] == (1, 2, 4)
    assert possible["llama-biased-tied-mha"] == (1, 2, 4, 8)
    assert possible["llama-mqa"] == (1,)
    for name in ("llama", "llama-head_dim", "mistral", "qwen2", "qwen3", "phi3"):
        assert possible[name] == (1, 2, 3, 4)


def test_phi3_with_long_rope_keeps_its_heads() -> None:
    # Its configuration wants as many rotary factors as hidden_size / heads / 2, whatever head_dim says.
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope |= {"original_max_position_embeddings": 64, "factor": 2.0, "partial_rotary_factor": 1.0}
    config = Phi3Config(**SHARED, rope_parameters=rope)
    architecture = architecture_of(build("phi3"), family_of("phi3"))
    assert possible_kv_widths(config, family_of("phi3"), architecture) == (4,)
    with pytest.raises(ModelError, match=r"^Phi3Config refuses these widths: .*short_factor field must have length"):
        stock_config(config, family_of("phi3"), LayerShape(4, 2, 8, 24, 1, 1), 3)


@pytest.mark.parametrize(
    ("name", "kv", "reason"),
    [
        (
            "gemma2",
            3,
            r"^Gemma2Config refuses these widths: The hidden size \(64\) is not a multiple of .* heads \(6\)\.$",
        ),
        ("gemma3_text", 3, r"^Gemma3TextConfig refuses these widths: The hidden size \(64\) is not a multiple of"),
        (
            "llama-biased-tied-mha",
            3,
            r"^LlamaConfig refuses .* mistral would accept them, but has no biases \(attention_bias and mlp_bias\)$",
        ),
    ],
)
def test_refusals_give_the_reason_in_one_line(name: str, kv: int, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        stock(build(name), keeping(build(name), kv, 10))
    assert "\n" not in str(caught.value)


def test_layers_of_different_widths_are_refused() -> None:
    model = build("llama")
    plan = random_plan(architecture_of(model, family_of("llama")), seed=3)
    with pytest.raises(ModelError, match=r"^layer 0 has \d KV groups and \d+ channels, layer 1 has .* --target stock$"):
        stock(model, plan)


def test_a_configuration_that_takes_no_width_says_why() -> None:
    config, architecture = Gemma2Config(**SHARED), architecture_of(build("gemma2"), family_of("gemma2"))
    config.hidden_size = 63
    with pytest.raises(ModelError, match=r"^Gemma2Config refuses these widths: The hidden size \(63\)"):
        possible_kv_widths(config, family_of("gemma2"), architecture)
