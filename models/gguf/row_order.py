"""Row lengths: quantised types come in blocks, and pruned widths need not be whole blocks.

A row is as long as its matrix has columns: C almost everywhere, F in ``ffn_down`` and H*D in ``attn_output``. What
llama-quantize does with a row that is no multiple of the block (seen with its own code, docs/gguf.md):

    Q8_0, Q4_0, Q5_0, ...   blocks of 32    it stops with an error
    Q4_K, Q5_K, Q6_K, ...   blocks of 256   it takes Q5_0, Q5_1, Q8_0 if 32 divides the row, f16 if not
"""

from core.groups import Architecture

BLOCK, K_BLOCK = 32, 256


def odd_rows(architecture: Architecture, block: int) -> dict[str, int]:
    """Tensor name -> number of layers where its rows are no multiple of ``block``; only names with some."""
    layers = architecture.layers
    counts = {
        "ffn_down": sum(layer.intermediate_size % block != 0 for layer in layers),
        "attn_output": sum(layer.num_heads * layer.head_dim % block != 0 for layer in layers),
        "every other matrix": len(layers) if architecture.hidden_size % block else 0,
    }
    return {name: count for name, count in counts.items() if count}


def quantisation_notes(architecture: Architecture, outtype: str) -> list[str]:
    """What quantising the file will meet, a sentence each; none where all rows are multiples of 256."""
    notes = []
    odd, odd_k = odd_rows(architecture, BLOCK), odd_rows(architecture, K_BLOCK)
    layers = architecture.num_layers
    if odd and outtype == "q8_0":
        notes.append(f"rows that are no multiple of {BLOCK} stay f16: {_listed(odd, layers)}")
    elif odd:
        notes.append(
            f"rows that are no multiple of {BLOCK}: {_listed(odd, layers)}. llama-quantize stops there for Q8_0, Q4_0 "
            "and their like (--outtype q8_0 keeps those in f16); prune with widths of whole blocks to avoid it"
        )
    if odd_k and outtype != "q8_0":
        notes.append(
            f"rows that are no multiple of {K_BLOCK}: {_listed(odd_k, layers)}. There K-quants (Q4_K_M and their like) "
            f"fall back to larger types, f16 where not even {BLOCK} divides the row"
        )
    return notes


def _listed(counts: dict[str, int], layers: int) -> str:
    return ", ".join(f"{name} in {count} of {layers} layers" for name, count in counts.items())
