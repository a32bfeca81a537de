"""The model of a run, checked; or as an earlier run found it, where no file of it changed since."""

from pathlib import Path

from core.cache import Entry
from models.checkpoint_files import find_folder
from models.loading import ModelSource, check_model
from models.recalled import source_facts, source_from
from run.cache_keys import check_key
from run.measurement_cache import MeasurementCache


def checked_model(base_model: str, trust_remote_code: bool, cache: MeasurementCache) -> ModelSource:
    """What ``check_model`` gives. ModelError.

    Of a folder the checks are recalled, which spares the import of the model's classes; a hub id is checked anew.
    """
    path, folder = find_folder(base_model)
    if cache.folder is None or trust_remote_code or not Path(path).is_dir():
        return check_model(base_model, trust_remote_code)
    try:
        key = check_key(base_model, folder)
    except OSError:  # what cannot be listed: the checks say it better
        return check_model(base_model, trust_remote_code)
    fresh: list[ModelSource] = []

    def check() -> Entry:
        fresh.append(check_model(base_model, trust_remote_code))
        return Entry({}, source_facts(fresh[0]))

    entry = cache.recall("model", key, check, measured=False)
    return fresh[0] if fresh else source_from(entry.facts)
