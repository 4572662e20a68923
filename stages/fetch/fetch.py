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
    if (sample is None) == (path is None):
        raise ConfigurationError(
            f"fetch.{dataset}: give one of sample ({', '.join(SAMPLES)}) or path; got {sample=!s}, {path=!s}."
        )
    if sample is not None and sample not in SAMPLES:
        raise ConfigurationError(f"fetch.{dataset}: unknown sample {sample!r}. Samples: {', '.join(SAMPLES)}.")
    target = Path("data/raw", dataset)
    if path is not None:
        path = path.expanduser()
        here, there = path.resolve(), target.resolve()
        if here == there or here in there.parents or there in here.parents:
            raise ConfigurationError(
                f"fetch.{dataset}: path {path} and {target}, where the copy goes, lie in each other. Data that is in "
                f"{target} already needs no fetch entry but `dvc add {target}`."
            )
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            raise InputRefusedError(f"fetch.{dataset}: path {path} does not exist or is empty.")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    if sample is not None:
        SAMPLES[sample](target)
    elif path.is_dir():
        shutil.copytree(path, target, dirs_exist_ok=True)
    else:
        shutil.copy2(path, target)
    print(f"{target}: {sum(file.is_file() for file in target.rglob('*'))} files")
