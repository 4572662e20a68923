"""Changes of sentence pairs: as of texts, in the source; the target stays, so that it remains its translation."""

from stages.augment.text import OPTIONS, SIZED, change

ARRAY = "source"

__all__ = ["ARRAY", "OPTIONS", "SIZED", "change"]
