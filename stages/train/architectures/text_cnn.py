"""One convolution over words and the largest answer of each map, wherever it was given.

Source: Kim 2014, "Convolutional Neural Networks for Sentence Classification", arXiv:1408.5882, section 2, figure 1 and
section 3.1 for the sizes. ``static`` and ``train``'s ``word_vectors`` give the paper's CNN-rand, CNN-static and
CNN-non-static. Changed: an unknown word is a zero vector; a window reaches over either end of the sentence, where
zeros stand, and what batches are filled up with is seen by none, so that it changes no answer. The preset trains with
Adam (the paper: Adadelta).
"""

import keras
from keras import layers, ops

KIND = "text"
UNKNOWN = 1  # the number of words that the vocabulary does not have; they are zero vectors
PRESET = {
    "epochs": 15,
    "batch": 50,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "tokens": "words",
}


def build(
    words: int,
    classes: int = 2,
    widths: tuple[int, ...] = (3, 4, 5),
    maps: int = 100,
    embedding: int = 300,
    static: bool = False,
    dropout: float = 0.5,
    norm: float = 3.0,
    width: float = 1.0,
) -> keras.Model:
    """Maps sentences, int32 tokens (batch, time) filled up with 0, to ``classes`` probabilities.

    Args:
        words: numbers that a token may have.
        classes: number of classes.
        widths: of the windows, in words.
        maps: per window width.
        embedding: length of a word vector.
        static: keep the word vectors as they are.
        dropout: share of the features that is set to 0 before the last layer.
        norm: largest l2 norm of a class's weights.
        width: multiplies ``maps``.
    """
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    there = ops.cast(ops.not_equal(tokens, 0), "float32")[..., None]  # (time, 1)
    uniform = keras.initializers.RandomUniform(-0.25, 0.25)  # of the author's code
    x = layers.Embedding(words, embedding, uniform, trainable=not static, name="embedding")(tokens)
    known = ops.cast(ops.greater(tokens, UNKNOWN), "float32")[..., None]
    x = x * known
    largest = [window(x, there, size, round(maps * width)) for size in widths]  # (maps,) each
    x = layers.Dropout(dropout)(layers.Concatenate(name="features")(largest))
    bound = keras.constraints.MaxNorm(norm, axis=0)
    output = layers.Dense(classes, "softmax", kernel_constraint=bound, dtype="float32", name="output")(x)
    return keras.Model(tokens, output, name="text_cnn")


def window(x, there, size: int, maps: int):
    """Largest answer of each map over all windows of ``size`` words that hold at least one: (time, n) -> (maps,)."""
    x = layers.ZeroPadding1D(size - 1)(x)
    x = layers.Conv1D(maps, size, activation="relu", name=f"conv{size}")(x)  # (time + size - 1, maps)
    seen = layers.MaxPooling1D(size, 1)(layers.ZeroPadding1D(size - 1)(there))
    return layers.GlobalMaxPooling1D(name=f"max{size}")(x * seen)  # no answer is below 0
