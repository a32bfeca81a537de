"""Tiny checkpoints for the GGUF tests, the engine that runs them, and a quantiser for whole files."""

import ctypes
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import random_plan
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from core.plan import PruningPlan
from models.architecture import architecture_of
from models.family_table import family_of
from models.gguf.vocabulary import LLAMA3, QWEN2, TEKKEN
from models.narrow import empty_narrow_model, is_pruned_type
from models.saving import save_checkpoint
from pruning.surgery import operate

SOURCES = tuple(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parents[1].rglob("test_c*.py")))
UNICODE = "naïve café Ünïcode Straße 你好，世界 こんにちは Привет мир 🙂👍 x² ½ ٣٤ “quoted” — dash"
CASES = "ÉCOLE École éCOLE ПРИВЕТ Привет ПриВет helloWORLD iPhone ΑΒγδ 中文abc Abc中文 a/b//\n//c ʰabc ǅabc"
TEXTS = (
    "Hello world",
    " one space before",
    "   three spaces before, two  inside and one after ",
    "def f(x):\n\tif x >= 10:\n        return  x ** 2\n\n\n    # 1234567 + 3.14\r\n",
    "don't you'll WE'VE I'm it's He'D",
    UNICODE,
    "🙂👩‍👩‍👧 ﷽ ǅ\u00a0non-breaking",
    CASES,
    "one<|end|>two <|end|> three",
    "\n",
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
PLAIN = pre_tokenizers.ByteLevel(add_prefix_space=False)


def split(pattern: str) -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES])


PRE_TOKENIZERS: dict[str, tuple[Any, bool]] = {
    "gpt-2": (PLAIN, False),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), PLAIN]), False),
    "llama-bpe": (split(LLAMA3), True),
    "smaug-bpe": (split(LLAMA3), False),
    "qwen2": (split(QWEN2), False),
    "tekken": (split(TEKKEN), True),
}


def tokenizer(pre: str = "gpt-2", add_bos: bool = True) -> Any:
    """Byte-level BPE of 600 tokens, trained in a blink; the pieces that TEXTS are cut into become tokens."""
    steps, ignore_merges = PRE_TOKENIZERS[pre]
    inner = Tokenizer(BPE(ignore_merges=ignore_merges))
    inner.pre_tokenizer, inner.decoder = steps, decoders.ByteLevel()
    specials = ["<|begin|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator((*SOURCES[:3], *TEXTS * 30), trainer)
    if add_bos:
        inner.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|end|>",
        clean_up_tokenization_spaces=False,
    )


SHARED: dict[str, Any] = {
    "vocab_size": 600,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3_ROPE = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SHARED, rope_parameters={"rope_type": "default", "rope_theta": 5000.0}),
    "llama-tied-biased": lambda: LlamaConfig(**SHARED, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama-llama3": lambda: LlamaConfig(**SHARED, rope_parameters=LLAMA3_ROPE),
    "llama-linear": lambda: LlamaConfig(**SHARED, rope_parameters=LINEAR),
    "mistral": lambda: MistralConfig(**SHARED, sliding_window=128),
    "qwen2": lambda: Qwen2Config(**SHARED),
    "qwen2-yarn": lambda: Qwen2Config(**SHARED, rope_parameters=YARN),
    "qwen3": lambda: Qwen3Config(**SHARED, tie_word_embeddings=True),
}


def build(config: Any, std: float = 0.1) -> Any:
    """A float32 model in eval mode, every parameter drawn from N(0, std), norms around 1."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.normal_(0.0, std).add_(1.0 if "norm" in name else 0.0)
    return model


def pruned(model: Any, plan: PruningPlan | None = None) -> Any:
    """By default about 60 % of every block stays, another number in every layer, and layer 1 goes whole."""
    family = family_of(model.config.model_type)
    plan = plan or random_plan(architecture_of(model, family), seed=3, removed_layers=(1,))
    return operate(model, empty_narrow_model(model, family, plan), family, plan)


def save(model: Any, folder: Path, words: Any = None, dtype: torch.dtype = torch.float32) -> Path:
    """As this tool saves a pruned model, and as transformers saves a dense one."""
    words = words or tokenizer()
    if is_pruned_type(model.config.model_type):
        return save_checkpoint(model, family_of(model.config.model_type), words, folder, dtype)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    """Change entries of config.json."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


class Engine:
    """llama.cpp with one file loaded; keys and values are cached in ``cache`` (f32 or f16)."""

    def __init__(self, path: Path, cache: str = "f32") -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = 128, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type[f"GGML_TYPE_{cache.upper()}"]
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.warmup, params.verbosity = False, -1
        self.server = xllamacpp.Server(params)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.server.listening_address + path, json.dumps(body).encode(), headers)
        with opener.open(request, timeout=60) as reply:
            return json.loads(reply.read())

    def logprobs(self, ids: list[int], vocabulary: int = 600) -> np.ndarray:
        """float64 (V,): log-probabilities of the token after ``ids``.

        They are taken before sampling; the bias forces a printable token, since half a character has no report.
        """
        ask = {"prompt": ids, "n_predict": 1, "n_probs": vocabulary, "temperature": 0, "cache_prompt": False}
        printable = self.tokenize("a", special=False)[0]
        reply = self.post("/completion", ask | {"logit_bias": [[printable, 1e4]]})
        (step,) = reply["completion_probabilities"]
        assert len(step["top_logprobs"]) == vocabulary
        values = np.full(vocabulary, np.nan)
        for entry in step["top_logprobs"]:
            values[entry["id"]] = entry["logprob"]
        return values

    def generate(self, prompt: str | list[int], length: int) -> list[int]:
        """Greedy continuation, token ids."""
        ask = {"prompt": prompt, "n_predict": length, "temperature": 0, "top_k": 1, "return_tokens": True}
        return list(self.post("/completion", ask | {"cache_prompt": False})["tokens"])

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        return list(self.post("/tokenize", {"content": text, "add_special": special, "parse_special": True})["tokens"])


def expected_logprobs(model: Any, ids: list[int]) -> np.ndarray:
    """float64 (T, V) of transformers; computed in double precision, since float32 is off by as much as the engine."""
    with torch.no_grad():
        logits = model.double()(torch.tensor([ids])).logits[0]
    model.float()
    return torch.log_softmax(logits, dim=-1).numpy()


def worst_difference(path: Path, model: Any, ids: list[int], cache: str = "f32") -> float:
    """Largest difference of a log-probability over five prefixes of ``ids``, the whole of it among them."""
    engine, expected = Engine(path, cache), expected_logprobs(model, ids)
    ends, vocabulary = (1, 2, 9, len(ids) // 2, len(ids)), expected.shape[1]
    return max(float(np.abs(engine.logprobs(ids[:end], vocabulary) - expected[end - 1]).max()) for end in ends)


def quantised(path: Path, kind: str) -> Path:
    """A copy of an f32 file, its matrices converted to ``kind`` by the engine's own quantiser.

    Rows that are no whole number of blocks become f16, as llama-quantize does it for K-quants.
    """
    import gguf
    import xllamacpp.xllamacpp as native

    quantise = ctypes.CDLL(native.__file__).ggml_quantize_chunk
    quantise.restype = ctypes.c_size_t
    quantise.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    reader, target = gguf.GGUFReader(path), path.with_suffix(f".{kind}.gguf")
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], element)
    stored = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[stored]
    for tensor in reader.tensors:
        values = np.ascontiguousarray(tensor.data, dtype=np.float32)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
            continue
        rows, columns = values.shape
        if columns % block:
            writer.add_tensor(tensor.name, values.astype(np.float16))
            continue
        packed = np.zeros((rows, columns // block * block_bytes), dtype=np.uint8)
        written = quantise(int(stored), values.ctypes.data, packed.ctypes.data, 0, rows, columns, None)
        assert written == packed.nbytes
        writer.add_tensor(tensor.name, packed, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
