"""Loading code that a checkpoint brings without touching, or needing, the user's own cache of such code.

transformers copies a folder's Python into HF_MODULES_CACHE (below the home folder) and imports it from there. A home
that is missing, read-only or full must not decide whether a saved model can be checked, and a check should leave
nothing there.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

PACKAGE = "transformers_modules"


@contextmanager
def own_module_cache(beside: Path) -> Iterator[None]:
    """Inside, a checkpoint's code is imported from a temporary folder; afterwards all is as it was.

    As it was are the cache's place, the import path, the imported modules and the classes that the Auto classes know.
    The folder is made where temporary files go, or in ``beside`` where that cannot be written; OSError where neither
    can.
    """
    import transformers.dynamic_module_utils as dynamic_modules
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    cache = _temporary_folder(beside)
    found, path = dynamic_modules.HF_MODULES_CACHE, list(sys.path)
    registries = (CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING)
    known = [dict(registry._extra_content) for registry in registries]
    modules = _take_out_modules()
    dynamic_modules.HF_MODULES_CACHE = str(cache)
    sys.path.insert(0, str(cache))  # first: once a model was loaded with its code, the user's cache stands there too
    try:
        yield
    finally:
        dynamic_modules.HF_MODULES_CACHE = found
        sys.path[:] = path
        _take_out_modules()
        sys.modules.update(modules)
        for registry, content in zip(registries, known, strict=True):
            registry._extra_content.clear()
            registry._extra_content.update(content)
        shutil.rmtree(cache, ignore_errors=True)


def _temporary_folder(beside: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="global-pruning-modules-"))
    except OSError:
        return Path(tempfile.mkdtemp(prefix=".modules.", dir=beside))


def _take_out_modules() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]
    return {name: sys.modules.pop(name) for name in names}
