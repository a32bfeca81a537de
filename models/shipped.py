"""The two Python files a pruned checkpoint ships, and the classes they define.

``templates/`` holds them for Llama, as real code. For another family only names differ, so rendering replaces the
names; what a checkpoint ships and what runs in this process is the same text.
"""

import functools
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

from core.families import Family

TEMPLATES = Path(__file__).with_name("templates")
FILES = ("configuration_pruned.py", "modeling_pruned.py")


class ShippedClasses(NamedTuple):
    config: Any
    model: Any
    causal_lm: Any


def render(family: Family) -> dict[str, str]:
    """File name -> text of the two shipped files for a family."""
    prefix, module = family.class_prefix, family.class_prefix.lower()
    # Most specific first; gemma3_text's configuration and base model are not its prefix plus a suffix.
    names = {
        "PrunedLlama": f"Pruned{prefix}",
        "LlamaModel": family.base_class,
        "LlamaConfig": family.config_class,
        "models.llama.modeling_llama": f"models.{module}.modeling_{module}",
        "pruned_llama": f"pruned_{family.model_type}",
        "Llama": prefix,
    }
    texts = {}
    for file in FILES:
        text = (TEMPLATES / file).read_text(encoding="utf-8")
        for index, old in enumerate(names):
            text = text.replace(old, f"\0{index}\0")
        for index, new in enumerate(names.values()):
            text = text.replace(f"\0{index}\0", new)
        texts[file] = text
    return texts


@functools.cache
def shipped_classes(family: Family) -> ShippedClasses:
    """Configuration, base model and causal LM classes of a family's pruned checkpoints."""
    package = types.ModuleType(f"models.shipped_{family.model_type}")
    package.__path__ = []  # a package, so that the shipped files' relative import resolves
    sys.modules[package.__name__] = package
    modules = {}
    for file, text in render(family).items():
        module = types.ModuleType(f"{package.__name__}.{Path(file).stem}")
        module.__package__ = package.__name__
        module.__file__ = str(TEMPLATES / file)
        sys.modules[module.__name__] = module
        exec(compile(text, f"<{family.model_type}: {file}>", "exec"), module.__dict__)
        modules[file] = module
    configuration, modeling = (modules[file] for file in FILES)
    prefix = family.class_prefix
    return ShippedClasses(
        getattr(configuration, f"Pruned{prefix}Config"),
        getattr(modeling, f"Pruned{prefix}Model"),
        getattr(modeling, f"Pruned{prefix}ForCausalLM"),
    )
