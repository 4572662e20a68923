"""Kinds of data: all that is known about pictures, volumes, texts and pairs of sentences."""
