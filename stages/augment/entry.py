"""What an entry of ``augment:`` in params.yaml says."""

from typing import Annotated, Literal

from pydantic import Field

from convoy.schema import Amount, Count, Entry, Positive, Seed, Share

Axis = Literal["depth", "height", "width"]
Length = Annotated[float, Field(ge=1, allow_inf_nan=False)]


class Augment(Entry):
    """What the changed copies of training examples are like."""

    copies: Count
    """Changed versions per example; 0 keeps the originals alone."""
    seed: Seed
    """Of every random choice. Equal seeds give equal bytes."""
    shift: Amount = 0.0
    """images, volumes: largest move, in pixels or whole voxels."""
    rotate: Amount = 0.0
    """images: largest turn, in degrees."""
    scale: Share = 0.0
    """images: largest change of size, as a share: 0.1 is 90 % to 110 %."""
    elastic: Amount = 0.0
    """images: typical length of the elastic displacement, in pixels."""
    smoothness: Amount = 4.0
    """images: distance over which the elastic displacement changes, in pixels."""
    flip: list[str] = Field([])
    """images: the classes of which a mirrored picture keeps its label; half of their copies are mirrored."""
    erase: Share = 0.0
    """images: largest share of the area that is overwritten with noise."""
    noise: Amount = 0.0
    """images, volumes: standard deviation of the noise added to each pixel, in grey levels of 255."""
    mirror: list[Axis] = Field([])
    """volumes: axes (depth, height, width) along which half of the copies are mirrored."""
    turn: list[Axis] = Field([])
    """volumes: axes about which copies are turned by a multiple of 90 degrees."""
    swap: Share = 0.0
    """text, translation: share of the words that change places."""
    delete: Share = 0.0
    """text, translation: share of the words that are left out."""
    insert: Share = 0.0
    """text, translation: words of the vocabulary that are put in, as a share of those there are."""
    misspell: Share = 0.0
    """text, translation: share of the characters that are left out, doubled, exchanged or replaced."""
    mask: Share = 0.0
    """text, translation: share of the words that are hidden, in spans."""
    span: Length = 3.0
    """text, translation: words of such a span, on average."""
    subwords: Positive | None = None
    """text, translation: learn so many, for the models that divide texts into subwords."""
