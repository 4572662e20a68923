"""Kinds of data: all that is known about pictures, volumes, texts and pairs of sentences, in one file each."""

from convoy.kinds.base import NAMES, Kind, get

__all__ = ["NAMES", "Kind", "get"]
