"""Decodes blocks of examples: what runs in the workers, which so start without pandas and SciPy."""

import hashlib
import os
from dataclasses import dataclass

import numpy as np

from convoy.data.shards import Arrays, objects
from convoy.errors import InputRefusedError
from convoy.kinds.base import Payload, decode_with

FILE_BYTES = 2**30  # largest file that is one example; above, a worker's memory would not be bounded
FINGERPRINT = "fingerprint"  # the array of them in the staging shards; it is not part of the output


@dataclass(frozen=True, slots=True)
class Decoded:
    """A block of examples from a worker; ``arrays``: those of the usable ones, and their fingerprints, stacked."""

    digests: list[bytes]
    files: list[tuple[bytes, ...]]  # SHA-256 of every whole file of every example
    reasons: list[str]
    contents: list[bytes]
    names: list[str]
    facts: list[tuple]
    arrays: Arrays


Task = tuple[tuple[str, ...], Payload | None]  # files and payload of an Item, which alone a worker needs


def decode_block(tasks: list[Task], kind: str, folder: str, options: dict) -> Decoded:
    """Reads and decodes examples; the function that runs in worker processes and on a cluster."""
    result = Decoded([], [], [], [], [], [], {})
    stacks: dict[str, list] = {}
    for names, payload in tasks:
        reason, example, files = "", None, ()
        try:
            data = payload
            if names:
                data = [read_file(folder, file) for file in names]
                files = tuple(hashlib.sha256(content).digest() for content in data)
            digest = files[0] if len(files) == 1 else digest_of(files or data)
            example = decode_with(kind, data, options)
        except InputRefusedError as refusal:
            # A file that could not be read has no digest, by which another would be known.
            reason, digest = str(refusal), b"" if names and not files else digest
        result.digests.append(digest)
        result.files.append(files)
        result.reasons.append(reason)
        result.contents.append(example.content if example else b"")
        result.facts.append(tuple(example.facts.values()) if example else ())
        if example:
            if not stacks:
                result.names.extend(example.facts)
            for name, array in example.arrays.items():
                stacks.setdefault(name, []).append(array)
            if example.fingerprint is not None:
                stacks.setdefault(FINGERPRINT, []).append(example.fingerprint)
    for name, stack in stacks.items():
        result.arrays[name] = objects(stack) if isinstance(stack[0], str) else np.stack(stack)
    return result


def digest_of(data: Payload | tuple[bytes, ...]) -> bytes:
    """Returns the SHA-256 of a part of a file, or of the SHA-256 of several files."""
    digest = hashlib.sha256()
    if isinstance(data, np.ndarray):
        digest.update(f"{data.dtype.str} {data.shape} ".encode())
        digest.update(np.ascontiguousarray(data).data)
    elif isinstance(data, bytes):
        digest.update(data)
    else:
        digest.update(b"text\0" if isinstance(data, str) else b"parts\0")  # else a file could have the digest of a text
        for part in (data,) if isinstance(data, str) else data:
            encoded = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
            digest.update(b"%d " % len(encoded) + encoded)
    return digest.digest()


def read_file(folder: str, file: str) -> bytes:
    """Returns what is in a file.

    Raises:
        InputRefusedError: it cannot be read, or has more than ``FILE_BYTES``.
    """
    try:
        # Without a buffer, which would cost as much as the reading.
        with open(f"{folder}/{file}", "rb", buffering=0) as opened:  # noqa: PTH123 - once per file
            size = os.fstat(opened.fileno()).st_size
            if size > FILE_BYTES:
                raise InputRefusedError(f"has {size:,} bytes, more than the {FILE_BYTES:,} that one example may have")
            return opened.read()
    except OSError as error:
        raise InputRefusedError(f"cannot be read: {error.strerror}") from error
