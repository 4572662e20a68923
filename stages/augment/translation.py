"""Changes of sentence pairs: those of texts, in the source. The target stays, so it remains its translation."""

from stages.augment.text import OPTIONS, SIZED, change

ARRAY = "source"

__all__ = ["ARRAY", "OPTIONS", "SIZED", "change"]
