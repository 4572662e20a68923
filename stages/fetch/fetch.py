"""Gets raw data: ``python -m stages fetch digits`` fills data/raw/digits, which nothing changes afterwards."""

import shutil
from pathlib import Path

from stages.errors import ConfigurationError, InputRefusedError
from stages.fetch.samples import SAMPLES


def fetch(dataset: str, *, sample: str | None = None, path: Path | None = None) -> None:
    """Writes data/raw/<dataset> from exactly one source.

    A data set that the user tracks with ``dvc add data/raw/NAME`` or ``dvc import-url`` needs no fetch entry.

    Args:
        dataset: name of the data set.
        sample: an embedded sample, made without network.
        path: a local folder or file, which is copied. DVC does not watch it: after a change of its content,
            ``dvc repro --force fetch@NAME``.

    Raises:
        ConfigurationError: no source, two sources, or an unknown sample; ``path`` and the target lie in each other.
        InputRefusedError: ``path`` does not exist or is an empty folder.
    """
    check_source(f"fetch.{dataset}", dataset, sample, path)
    target = Path("data/raw", dataset)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    if sample is not None:
        SAMPLES[sample](target)
    elif path.expanduser().is_dir():
        shutil.copytree(path.expanduser(), target, dirs_exist_ok=True)
    else:
        shutil.copy2(path.expanduser(), target)
    print(f"{target}: {sum(file.is_file() for file in target.rglob('*'))} files")


def check_source(where: str, dataset: str, sample: str | None, path: Path | None) -> None:
    """Raises what ``fetch`` would raise for these arguments, before any work."""
    if (sample is None) == (path is None):
        raise ConfigurationError(
            f"{where}: give one of sample ({', '.join(SAMPLES)}) or path; got {sample=!s}, {path=!s}."
        )
    if sample is not None and sample not in SAMPLES:
        raise ConfigurationError(f"{where}: unknown sample {sample!r}. Samples: {', '.join(SAMPLES)}.")
    if path is None:
        return
    here, target = path.expanduser().resolve(), Path("data/raw", dataset).resolve()
    if here == target or here in target.parents or target in here.parents:
        raise ConfigurationError(
            f"{where}: path {path} and data/raw/{dataset}, where the copy goes, lie in each other. Data that is there "
            f"already needs no fetch entry but `dvc add data/raw/{dataset}`."
        )
    if not here.exists() or (here.is_dir() and not any(here.iterdir())):
        raise InputRefusedError(f"{where}: path {path} ({here}) does not exist or is empty.")
