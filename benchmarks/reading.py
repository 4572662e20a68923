"""How fast shuffled batches come from the shards, beside what a user would pick instead, in one run.

Usage: ``make BENCHMARKS=1 setup``, then ``python benchmarks/reading.py [pictures]`` with CONVOY_DATASETS set. Prints a
Markdown table; every row reads the same pictures, 64x64x3 photos of caltech101-10 repeated up to the given number
(20,000), each once per epoch in shuffled order, in batches of 128, and touches every byte. Rounds are interleaved;
medians of 7.
"""

import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import grain.python as grain
import numpy as np
import psutil
import tensorflow as tf
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from convoy.data.shards import Shards, write_shards

BATCH, SIDE, ROUNDS = 128, 64, 7
SHAPE = (SIDE, SIDE, 3)


def photos(count: int) -> np.ndarray:
    """Returns ``count`` pictures, uint8 of shape (count, 64, 64, 3)."""
    paths = sorted((Path(os.environ["CONVOY_DATASETS"]) / "caltech101-10").rglob("*.jpg"))
    pictures = np.stack([np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE))) for path in paths])
    return pictures[np.arange(count) % len(pictures)]


def jpeg(picture: np.ndarray) -> bytes:
    """Returns a picture as JPEG of Pillow's default quality, 75."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tfrecord(path: Path, contents: Iterator[bytes]) -> None:
    """Writes one ``tf.train.Example`` with the feature ``image`` per picture."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for content in contents:
            feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
            writer.write(tf.train.Example(features=tf.train.Features(feature={"image": feature})).SerializeToString())


def tfrecords(path: Path, decode: Callable[[tf.Tensor], tf.Tensor]) -> Iterator[np.ndarray]:
    """Yields batches of a TFRecord file as its guide says: shuffle, parallel map, batch, prefetch."""

    def parse(record: tf.Tensor) -> tf.Tensor:
        return decode(tf.io.parse_single_example(record, {"image": tf.io.FixedLenFeature([], tf.string)})["image"])

    data = tf.data.TFRecordDataset(str(path)).shuffle(10_000, seed=1)
    data = data.map(parse, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)
    return data.as_numpy_iterator()


def grained(path: Path, workers: int) -> Iterator[np.ndarray]:
    """Yields batches of an ArrayRecord file through Grain's loader."""

    class Decode(grain.MapTransform):
        def map(self, record: bytes) -> np.ndarray:
            return np.frombuffer(record, np.uint8).reshape(SHAPE)

    source = grain.ArrayRecordDataSource(str(path))
    sampler = grain.IndexSampler(len(source), grain.NoSharding(), shuffle=True, num_epochs=1, seed=1)
    return iter(
        grain.DataLoader(
            data_source=source, sampler=sampler, operations=[Decode(), grain.Batch(BATCH)], worker_count=workers
        )
    )


def main(count: int = 20_000) -> None:
    """Writes the pictures in every format, reads them ``ROUNDS`` times, prints the table."""
    pictures = photos(count)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder / "shards", [{"image": pictures}])
        write_tfrecord(folder / "jpeg.tfrecord", map(jpeg, pictures))
        write_tfrecord(folder / "raw.tfrecord", (picture.tobytes() for picture in pictures))
        writer = ArrayRecordWriter(str(folder / "raw.array_record"), "group_size:1")
        for picture in pictures:
            writer.write(picture.tobytes())
        writer.close()
        shards = Shards(folder / "shards")
        target = np.empty((BATCH, *SHAPE), np.uint8)

        def copy() -> Iterator[np.ndarray]:
            """The limit: the same bytes copied in memory, in order."""
            for start in range(0, count, BATCH):
                part = pictures[start : start + BATCH]
                target[: len(part)] = part
                yield target[: len(part)]

        readers = {
            "memory copy, in order (the limit)": copy,
            "**convoy shards**": lambda: (block["image"] for block in shards.batches(BATCH, seed=1)),
            "tf.data, TFRecord + JPEG": lambda: tfrecords(
                folder / "jpeg.tfrecord", lambda content: tf.io.decode_jpeg(content, channels=3)
            ),
            "tf.data, raw TFRecord": lambda: tfrecords(
                folder / "raw.tfrecord", lambda content: tf.reshape(tf.io.decode_raw(content, tf.uint8), SHAPE)
            ),
            "Grain, ArrayRecord, in process": lambda: grained(folder / "raw.array_record", 0),
            "Grain, ArrayRecord, 2 workers": lambda: grained(folder / "raw.array_record", 2),
        }
        seconds: dict[str, list[float]] = {title: [] for title in readers}
        for _ in range(ROUNDS):
            for title, reader in readers.items():
                started, seen = time.perf_counter(), 0
                for batch in reader():
                    seen += len(batch)
                    batch.max()  # every byte is looked at
                assert seen == count, (title, seen)
                seconds[title].append(time.perf_counter() - started)
    rates = {title: count / statistics.median(times) for title, times in seconds.items()}
    ours = rates["**convoy shards**"]
    print(f"{count:,} pictures {SIDE}x{SIDE}x3, batches of {BATCH}, medians of {ROUNDS} interleaved rounds")
    print(f"peak memory of the process {psutil.Process().memory_info().rss / 2**20:,.0f} MiB\n")
    print("| reader | images/s | MB/s | convoy is |\n|---|---|---|---|")
    for title, rate in rates.items():
        print(f"| {title} | {rate:,.0f} | {rate * np.prod(SHAPE) / 1e6:,.0f} | {ours / rate:.2f}x |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
