"""Write the file: metadata first, then one tensor after the other."""

import errno
import os
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, RopeScalingType, quants

from core.errors import ModelError, OutputError, UsageError
from core.failures import ELSEWHERE, NEXT_STEP
from core.files import write_atomically
from core.progress import tqdm
from models.gguf import OUTTYPES, Exported
from models.gguf.gguf_tensors import Tensor, check_shapes, read_tensor, tensors_of
from models.gguf.row_order import BLOCK, quantisation_notes
from models.gguf.support import arch_of, refuse_empty_blocks, rope_factors
from models.gguf.vocabulary import Vocabulary, vocabulary_of
from models.loading import ModelSource, check_model, open_weights
from models.tensors import StoredTensors

_FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
}
_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
Q8_0_BLOCK_BYTES = 34  # 32 int8 values and their float16 scale


def write_gguf(folder: Path, outfile: Path | None, outtype: str) -> Exported:
    """See ``models.gguf.export_gguf``."""
    if outtype not in OUTTYPES:
        raise UsageError(f"outtype {outtype} is not one of {', '.join(OUTTYPES)}")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json; give the folder of a saved checkpoint")
    name = folder.resolve().name
    path = outfile or folder / f"{name}-{outtype}.gguf"
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the file to write")
    refuse_empty_blocks(folder)
    source = check_model(str(folder))
    arch, vocabulary = arch_of(source), vocabulary_of(source)
    tensors, weights = tensors_of(source, arch), open_weights(source, None)[1]
    check_shapes(folder, weights, tensors)

    def write(temporary: Path) -> None:
        writer = GGUFWriter(temporary, arch)
        try:
            writer.add_name(name)
            writer.add_file_type(_FILE_TYPES[outtype])
            _describe(writer, source)
            _add_vocabulary(writer, vocabulary)
            _write_tensors(writer, source, tensors, weights, outtype)
        finally:
            writer.close()

    try:
        write_atomically(path, write)
    except OSError as error:
        raise _cannot_write(path, error) from error
    notes = (*source.notes, *vocabulary.notes, *quantisation_notes(source.architecture, outtype))
    return Exported(path, arch, len(tensors), path.stat().st_size, notes)


def _cannot_write(path: Path, error: OSError) -> OutputError:
    """numpy writes the tensors, and says of a full disk only how many values it took."""
    number = error.errno or errno.ENOSPC
    return OutputError(f"{path} cannot be written ({os.strerror(number)}); {NEXT_STEP.get(number, ELSEWHERE)}")


def _describe(writer: GGUFWriter, source: ModelSource) -> None:
    """The model's shape; widths are arrays of one entry a layer."""
    config, layers = source.config, source.architecture.layers
    writer.add_type("model")
    writer.add_quantization_version(2)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(source.context)
    writer.add_embedding_length(source.architecture.hidden_size)
    writer.add_block_count(len(layers))
    writer.add_head_count([layer.num_heads for layer in layers])
    writer.add_head_count_kv([layer.num_kv_heads for layer in layers])
    writer.add_feed_forward_length([layer.intermediate_size for layer in layers])
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(layers[0].head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    factors = rope_factors(source)
    if factors is not None:
        writer.add_rope_scaling_attn_factors(factors[1])
    elif rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")  # the engine's name for every byte-level BPE
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_eos_token_id(vocabulary.eos)
    if vocabulary.bos is not None:
        writer.add_bos_token_id(vocabulary.bos)
    if vocabulary.pad is not None:
        writer.add_pad_token_id(vocabulary.pad)
    if vocabulary.eot is not None:
        writer.add_eot_token_id(vocabulary.eot)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _write_tensors(
    writer: GGUFWriter, source: ModelSource, tensors: list[Tensor], weights: StoredTensors, outtype: str
) -> None:
    stored = {tensor.name: stored_type(tensor.shape, outtype) for tensor in tensors}
    factors = rope_factors(source)
    if factors is not None:
        _announce(writer, "rope_freqs.weight", tuple(factors[0].shape), "f32")
    for tensor in tensors:
        _announce(writer, tensor.name, tensor.shape, stored[tensor.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(_bytes_of(factors[0], "f32", "rope_freqs.weight"))
    for tensor in tqdm(tensors, desc="gguf", unit="tensor", leave=False):
        writer.write_tensor_data(_bytes_of(read_tensor(weights, tensor), stored[tensor.name], tensor.name))


def stored_type(shape: tuple[int, ...], outtype: str) -> str:
    """Norms and biases are kept in f32, which costs next to nothing; Q8_0 wants whole blocks in a row."""
    if len(shape) == 1:
        return "f32"
    return "f16" if outtype == "q8_0" and shape[-1] % BLOCK else outtype


def _announce(writer: GGUFWriter, name: str, shape: tuple[int, ...], stored: str) -> None:
    count = int(np.prod(shape))
    size_bytes = count // BLOCK * Q8_0_BLOCK_BYTES if stored == "q8_0" else count * _DTYPES[stored].itemsize
    raw_dtype = GGMLQuantizationType[stored.upper()]
    writer.add_tensor_info(name, shape, np.dtype(np.float32), size_bytes, raw_dtype=raw_dtype)


def _bytes_of(values: torch.Tensor, stored: str, name: str) -> np.ndarray:
    """uint8 array of the values in the ``stored`` type, row by row. ModelError where float16 cannot hold one."""
    if stored == "q8_0":
        return quants.quantize(values.float().numpy(), GGMLQuantizationType.Q8_0)
    converted = values.to(_DTYPES[stored])
    if stored == "f16" and not bool(torch.isfinite(converted).all()):
        raise ModelError(f"{name} has values that float16 cannot hold (beyond 65504, or NaN); export bf16 or f32")
    return converted.contiguous().reshape(-1).view(torch.uint8).numpy()
