"""Near duplicates: ``python benchmarks/duplicates.py``, data sets in $CONVOY_DATASETS; about three minutes on 2 cores.

Plants changed copies of 1,069 photos of Caltech-101 and of the sentences of two text sets, and counts which are found;
then counts what is found where nothing was planted, and how fast. Prints tables for RESULTS.md.
"""

import gzip
import io
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

sys.path.insert(0, str(Path(__file__).parent.parent))
from convoy.kinds import fingerprints
from convoy.machine.room import cores
from stages.ingest.near import duplicates
from stages.ingest.near.pictures import find_pairs
from stages.ingest.near.texts import find_pairs as find_text_pairs

Change = Callable[[Image.Image, np.random.Generator], Image.Image]

# Copies that are in the data set itself, by the numbers of their files: found by the search, then looked at.
COPIES = {
    "butterfly": [(1, 31)],
    "grand_piano": [(2, 77), (3, 46), (6, 14), (9, 72), (41, 51, 53)],
    "hawksbill": [(9, 39), (28, 40), (42, 45)],
    "ketch": [(35, 41)],
    "starfish": [(16, 67)],
    "stop_sign": [(1, 5, 34, 43, 56), (11, 14), (47, 48)],
    "watch": [(125, 160), (172, 212), (173, 211)],
}


def jpeg(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Compresses with a quality of 30 to 90."""
    return _stored(picture, format="JPEG", quality=int(rng.integers(30, 91)))


def png(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Stores the pixels in another format."""
    return _stored(picture, format="PNG")


def brightness(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Multiplies by 0.6 to 1.4; what becomes brighter than white is cut off."""
    return ImageEnhance.Brightness(picture).enhance(rng.uniform(0.6, 1.4))


def contrast(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Multiplies the distance from the mean by 0.6 to 1.4."""
    return ImageEnhance.Contrast(picture).enhance(rng.uniform(0.6, 1.4))


def shift(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Moves by up to 5 % of the sides; the border is repeated in the gap."""
    values = np.asarray(picture)
    across, down = _draw(picture, rng)
    rows = np.clip(np.arange(values.shape[0]) - down, 0, values.shape[0] - 1)
    columns = np.clip(np.arange(values.shape[1]) - across, 0, values.shape[1] - 1)
    return Image.fromarray(values[rows][:, columns])


def shift_cut(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Moves likewise; the gap is cut off."""
    across, down = _draw(picture, rng)
    width, height = picture.size
    return picture.crop((max(across, 0), max(down, 0), width + min(across, 0), height + min(down, 0)))


def crop_centre(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cuts 2 to 10 % off each side."""
    return _cut(picture, *[rng.uniform(0.02, 0.1)] * 4)


def crop_sides(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cuts up to 10 % off each side, each a different part."""
    return _cut(picture, *rng.uniform(0, 0.1, 4))


def crop_corner(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cuts 2 to 10 % off two neighbouring sides."""
    part, right, lower = rng.uniform(0.02, 0.1), rng.integers(2), rng.integers(2)
    return _cut(picture, part * (1 - right), part * (1 - lower), part * right, part * lower)


def rescale(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Scales by 0.5 to 2 with one of four filters."""
    scale, filters = 2 ** rng.uniform(-1, 1), ("NEAREST", "BILINEAR", "BICUBIC", "LANCZOS")
    size = [max(1, round(side * scale)) for side in picture.size]
    return picture.resize(size, Image.Resampling[filters[rng.integers(4)]])


def grey(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Drops the colour."""
    return picture.convert("L")


SINGLE = (jpeg, png, brightness, contrast, shift, shift_cut, crop_centre, crop_sides, crop_corner, rescale, grey)
DOUBLE = (
    (brightness, jpeg),
    (brightness, contrast),
    (crop_centre, jpeg),
    (crop_sides, brightness),
    (rescale, crop_corner),
    (rescale, jpeg),
    (shift, contrast),
    (shift_cut, grey),
    (shift, crop_centre),
)
CHANGES = [(change,) for change in SINGLE] + list(DOUBLE)


def main() -> None:
    """Prints four tables."""
    data = Path(os.environ.get("CONVOY_DATASETS", ""))
    files = sorted((data / "caltech101-10").glob("*/*.jpg"))
    if not files:
        sys.exit(f"no photos in {data / 'caltech101-10'}: set CONVOY_DATASETS to the folder that holds it")
    photos = [Image.open(file).convert("RGB") for file in files]
    small = [photo.resize((32, 32), Image.Resampling.BOX) for photo in photos]
    originals = np.stack([fingerprints.fingerprint(photo) for photo in photos])
    _planted(files, photos, small)
    _unplanted(files, originals)
    _speed(data, photos, originals)
    _texts(data)


def _planted(files: list[Path], photos: list[Image.Image], small: list[Image.Image]) -> None:
    scene = np.arange(len(files))
    place = {(file.parent.name, int(file.stem.split("_")[1])): number for number, file in enumerate(files)}
    for label, copies in COPIES.items():
        for numbers in copies:
            scene[[place[label, number] for number in numbers]] = place[label, numbers[0]]
    print("| change | photos: recall | precision | 32x32: recall | precision |\n|---|---|---|---|---|")
    totals = np.zeros((2, 3))
    for number, changes in enumerate(CHANGES):
        row = " + ".join(change.__name__ for change in changes)
        for size, pictures in enumerate((photos, small)):
            found, right, wrong = counts = _search(pictures, changes, number, scene)
            totals[size] += counts
            row += f" | {found / len(photos):.3f} | {right / (right + wrong):.4f}"
        print(f"| {row} |")
    row = "mean"
    for found, right, wrong in totals:
        row += f" | {found / len(photos) / len(CHANGES):.3f} | {right / (right + wrong):.4f}"
    print(f"| {row} |\n")


def _search(
    pictures: list[Image.Image], changes: tuple[Change, ...], seed: int, scene: np.ndarray
) -> tuple[int, int, int]:
    """Returns how many planted copies, how many pairs of one scene and how many of two scenes were found."""
    prints = [fingerprints.fingerprint(picture) for picture in pictures]
    for number, picture in enumerate(pictures):
        rng = np.random.default_rng((seed, number))
        for change in changes:
            picture = change(picture, rng)
        prints.append(fingerprints.fingerprint(picture))
    count = len(pictures)
    pairs = find_pairs(np.stack(prints), np.arange(count, 2 * count))
    right = scene[pairs[:, 0] % count] == scene[pairs[:, 1] % count]
    return int((pairs[:, 1] - pairs[:, 0] == count).sum()), int(right.sum()), int((~right).sum())


def _unplanted(files: list[Path], originals: np.ndarray) -> None:
    pairs = find_pairs(originals)
    names = [f"{file.parent.name}/{file.stem[-4:].lstrip('0')}" for file in files]
    print(f"{len(pairs)} pairs among the {len(files):,} photos as they are:")
    print("; ".join(f"{names[a]} {names[b]}" for a, b in pairs) + "\n")


def _speed(data: Path, photos: list[Image.Image], originals: np.ndarray) -> None:
    with ThreadPoolExecutor(cores()) as pool:
        start = time.perf_counter()
        list(pool.map(fingerprints.fingerprint, photos * 5))
        rate = 5 * len(photos) / (time.perf_counter() - start)
    print(f"fingerprint of decoded photos, {cores()} threads: {rate:,.0f}/s\n")
    sets = {"photos": originals}
    for parts in (3, 8):
        pieces = [piece for photo in photos for piece in _pieces(photo, parts)]
        sets[f"photos, each in {parts} x {parts} pieces"] = np.stack(
            [fingerprints.fingerprint(piece) for piece in pieces]
        )
    for name in ("mnist", "fashion-mnist"):
        content = [
            gzip.decompress((data / name / f"{part}-images-idx3-ubyte.gz").read_bytes()) for part in ("train", "t10k")
        ]
        values = np.concatenate([np.frombuffer(part, np.uint8, offset=16).reshape(-1, 28, 28) for part in content])
        sets[name] = np.stack([fingerprints.fingerprint(Image.fromarray(picture)) for picture in values])
    print(
        "| set | pictures | pairs | in groups | largest group | s | CPU s | pictures/s |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name, prints in sets.items():
        start, used = time.perf_counter(), time.process_time()
        pairs = find_pairs(prints)
        seconds, used = time.perf_counter() - start, time.process_time() - used
        print(
            f"| {name} | {_summary(len(prints), pairs)} | {seconds:.1f} | {used:.1f} | {len(prints) / seconds:,.0f} |"
        )
    mixed = np.concatenate([sets["mnist"], originals])  # one more picture in a hundred
    start = time.perf_counter()
    find_pairs(mixed, np.arange(len(mixed) - 700, len(mixed)))
    print(f"\n700 new pictures against {len(mixed) - 700:,}: {time.perf_counter() - start:.1f} s\n")


def _texts(data: Path) -> None:
    reviews = [(data / f"rt-polarity/rt-polarity.{part}").read_text("cp1252").split("\n") for part in ("pos", "neg")]
    questions = [(data / f"trec/{part}.label").read_text("latin-1").split("\n") for part in ("train_5500", "TREC_10")]
    sets = {
        "rt-polarity": [line.strip() for part in reviews for line in part if line.strip()],
        "trec": [line.partition(" ")[2].strip() for part in questions for line in part if line.strip()],
    }
    print("| set | change | texts | recall |\n|---|---|---|---|")
    summaries = []
    for name, texts in sets.items():
        start = time.perf_counter()
        prints = np.stack([fingerprints.text_fingerprint(text) for text in texts])
        pairs = find_text_pairs(prints)
        rate = len(texts) / (time.perf_counter() - start)
        summaries.append(f"| {name} | {_summary(len(texts), pairs)} | {rate:,.0f} |")
        for change, least in ((loud, 1), (bare, 1), (spaced, 1), (appended, 6), (exchanged, 10)):
            rng = np.random.default_rng(0)
            chosen = [number for number, text in enumerate(texts) if len(fingerprints.WORD.findall(text)) >= least]
            copies = np.stack([fingerprints.text_fingerprint(change(texts[number], rng)) for number in chosen])
            pairs = find_text_pairs(np.concatenate([prints, copies]), len(prints) + np.arange(len(copies)))
            found = len({(a, b) for a, b in pairs.tolist()} & set(zip(chosen, range(len(prints), 10**9), strict=False)))
            print(f"| {name} | {change.__doc__.rstrip('.')} | {len(chosen):,} | {found / len(chosen):.3f} |")
    print("\n| set | texts | pairs | in groups | largest group | texts/s |\n|---|---|---|---|---|---|")
    print("\n".join(summaries))


def loud(text: str, rng: np.random.Generator) -> str:
    """Capital letters."""
    return text.upper()


def bare(text: str, rng: np.random.Generator) -> str:
    """No punctuation."""
    return " ".join(fingerprints.WORD.findall(text))


def spaced(text: str, rng: np.random.Generator) -> str:
    """Other white space and a full stop."""
    return "\t" + text.replace(" ", "  ") + " .\r\n"


def appended(text: str, rng: np.random.Generator) -> str:
    """A word more at the end, of 6 words or more."""
    return text + " indeed"


def exchanged(text: str, rng: np.random.Generator) -> str:
    """Another word in place of one, of 10 words or more."""
    words = fingerprints.WORD.findall(text)
    words[rng.integers(len(words))] = "otherwise"
    return " ".join(words)


def _summary(count: int, pairs: np.ndarray) -> str:
    sizes = np.bincount(duplicates.group(count, pairs))
    return f"{count:,} | {len(pairs):,} | {sizes[sizes > 1].sum():,} | {sizes.max()}"


def _stored(picture: Image.Image, **options: str | int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, **options)
    return Image.open(file)


def _draw(picture: Image.Image, rng: np.random.Generator) -> tuple[int, int]:
    across, down = (round(side * rng.uniform(-0.05, 0.05)) for side in picture.size)
    return across, down


def _cut(picture: Image.Image, left: float, upper: float, right: float, lower: float) -> Image.Image:
    width, height = picture.size
    return picture.crop(
        (round(width * left), round(height * upper), round(width * (1 - right)), round(height * (1 - lower)))
    )


def _pieces(photo: Image.Image, parts: int) -> list[Image.Image]:
    across, down = (np.linspace(0, side, parts + 1).astype(int).tolist() for side in photo.size)
    return [photo.crop((across[i], down[j], across[i + 1], down[j + 1])) for i in range(parts) for j in range(parts)]


if __name__ == "__main__":
    main()
