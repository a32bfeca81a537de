"""Tensors beyond those of the model, missing ones, other names: the same logits, or a line that names a tensor."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_tampered_folder import config_with, tensors_with
from tiny_models import token_ids
from workspace import write_model

from core.errors import ModelError
from models.loading import check_model, load_model, open_weights

CPU = torch.device("cpu")
IDS = token_ids()
STORED = [f"model.layers.{layer}.mlp.{name}_proj.weight" for layer in (0, 2) for name in ("gate", "down")]
STORED += ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"]
EXTRA = ["score.weight", "lm_head.bias", "model.mtp.0.weight", "model.layers.3.mlp.up_proj.weight"]
EXTRA += ["model.layers.1.self_attn.rotary_emb.inv_freq", "model.layers.0.self_attn.q_proj.weight_scale"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("dense") / "model")


@pytest.fixture(scope="module")
def logits(dense: Path) -> torch.Tensor:
    return load_model(check_model(str(dense)), CPU, torch.float32)(IDS).logits


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    added=st.sets(st.sampled_from(EXTRA), max_size=2),
    dropped=st.sets(st.sampled_from(STORED), max_size=1),
    unprefixed=st.sets(st.sampled_from(STORED), max_size=3),
)
def test_the_same_logits_or_a_line_that_names_the_tensor(
    added: set[str],
    dropped: set[str],
    unprefixed: set[str],
    dense: Path,
    logits: torch.Tensor,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("edited")
    for path in dense.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = {
        name.removeprefix("model.") if name in unprefixed else name: tensor
        for name, tensor in load_file(dense / "model.safetensors").items()
        if name not in dropped
    }
    save_file(tensors | {name: torch.ones(4) for name in added}, folder / "model.safetensors", {"format": "pt"})
    wrong = dropped | {name for name in added if "inv_freq" not in name}
    if wrong:
        with pytest.raises(ModelError, match="|".join(map(re.escape, wrong))):
            check_model(str(folder))
        return
    source = check_model(str(folder))
    assert torch.equal(load_model(source, CPU, torch.float32)(IDS).logits, logits)
    assert len(open_weights(source, None)[1]) == len(tensors)


LEFT_OVER = {
    "score.weight": "config.json says LlamaForSequenceClassification, and LlamaForCausalLM has no place for it",
    "model.mtp.0.weight": "LlamaForCausalLM has no place for it",
    "model.layers.3.mlp.up_proj.weight": "config.json names 3 layers; restore the num_hidden_layers",
    "model.layers.0.self_attn.q_proj.lora_A.default.weight": "an adapter that was not merged",
}


@pytest.mark.parametrize("name", LEFT_OVER)
def test_what_has_no_place_is_named_with_the_reason(dense: Path, tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "model")
    tensors_with(lambda tensors: tensors.update({name: torch.ones(2)}))(folder)
    config_with(lambda config: config.update(architectures=["LlamaForSequenceClassification"]))(folder)
    with pytest.raises(ModelError, match="is left over") as caught:
        check_model(str(folder))
    assert name in str(caught.value)
    assert LEFT_OVER[name] in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8], ids=str)
def test_quantised_tensors_are_told_by_their_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    """No quantization_config says so; with the shapes of the model they would load as weights."""
    folder = write_model(tmp_path / "model")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors_with(lambda tensors: tensors.update({name: tensors[name].to(dtype)}))(folder)
    with pytest.raises(ModelError, match=rf"is quantised: {name} is stored as [FIU]8"):
        check_model(str(folder))


BF16, F32 = torch.bfloat16, torch.float32
NORMS = "norm"
# stored dtype, config.json's dtype, tensors stored in float32 all the same -> what is saved, words of the note
DTYPES: dict[str, tuple[torch.dtype, str | None, str, torch.dtype, str]] = {
    "as config.json says": (BF16, "bfloat16", "", BF16, ""),
    "config.json says nothing": (BF16, None, "", BF16, ""),
    "config.json says a wider one": (BF16, "float32", "", BF16, "config.json says float32"),
    "config.json says a narrower one": (F32, "bfloat16", "", F32, "weights are stored in float32, which is used"),
    "norms are wider": (BF16, "bfloat16", NORMS, BF16, "7 tensors are stored in float32 and will be bfloat16, as most"),
    "embeddings are wider": (BF16, "bfloat16", "embed", BF16, "1 tensor is stored in float32 and will be bfloat16"),
    "double": (torch.float64, "float32", "", F32, "in float64 and will be float32, the widest dtype that is saved"),
}


@pytest.mark.parametrize("what", DTYPES)
def test_the_dtype_is_that_of_most_prunable_weights(tmp_path: Path, what: str) -> None:
    stored, said, wider, expected, note = DTYPES[what]
    folder = write_model(tmp_path / "model", dtype=stored)
    if wider:
        tensors_with(lambda tensors: tensors.update({n: t.float() for n, t in tensors.items() if wider in n}))(folder)
    config_with(lambda config: config.update(dtype=said) if said else config.pop("dtype"))(folder)
    source = check_model(str(folder))
    assert source.stored_dtype == expected
    assert len(source.notes) == bool(note)
    assert note in "".join(source.notes)


def test_a_base_model_whose_embedding_is_its_head_is_told_of(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama-biased-tied-mha")
    config_with(lambda config: config.update(architectures=["LlamaModel"]))(folder)
    (note,) = check_model(str(folder)).notes
    assert "config.json says LlamaModel; it is pruned and saved as LlamaForCausalLM" in note


WRAPPED = ["base_model.model.", "_orig_mod.", "module."]


@pytest.mark.parametrize("prefix", WRAPPED)
def test_names_that_a_wrapper_added_to_are_told_with_its_prefix(tmp_path: Path, prefix: str) -> None:
    folder = write_model(tmp_path / "model")
    tensors = {prefix + name: tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"take the prefix {re.escape(prefix)} off the names"):
        check_model(str(folder))


def test_weights_without_a_head_come_with_a_next_step(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    tensors_with(lambda tensors: tensors.pop("lm_head.weight"))(folder)
    with pytest.raises(ModelError, match=r"lm_head\.weight is missing; give the weights with their head, or set tie_"):
        check_model(str(folder))
