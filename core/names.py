"""Names that a user may choose among, each list once; whatever implements one is looked up by these."""

GRADIENT_REDUCTIONS = ("sequence", "sum")
NORM_METHODS = ("log", "minmax", "zscore", "sqrt")
PRIORS = ("loss", "similarity")
RATIO_OF = ("total", "prunable")
HF, STOCK, VLLM, LLAMA_CPP = TARGETS = ("hf", "stock", "vllm", "llama.cpp")
ENGINES = ("auto", "resident", "streamed", "sharded")
DTYPES = ("auto", "bfloat16", "float16", "float32")
SELF = "self"  # text that the dense model writes
DATASETS = ("c4", "wikitext2", "ptb", "pydoc", "pycode", SELF)  # known by name; anything else is a path
MEASURES = ("ppl", "generation", "tasks", "speed")
DEFAULT_TASK = "pydoc_cloze"  # needs no network
EXPORTS = ("gguf",)
REPAIRS = ("none", "least_squares")
REPAIR_MODULES = ("all", "outputs")
REPAIR_TARGETS = ("stream", "dense", "pruned")
REPAIR_TEXTS = ("mixed", "calibration")
RECOVERIES = ("blocks", "distill")  # in the order in which they run
GGUF_PER_LAYER = ("llama", "mistral", "qwen2", "qwen3")  # llama.cpp has an architecture with widths per layer for these
