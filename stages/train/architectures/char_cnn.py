"""Six convolutions over single characters.

Source: Zhang, Zhao and LeCun 2015, "Character-level Convolutional Networks for Text Classification", arXiv:1509.01626,
section 2 and tables 1 and 2; ``features`` 1024 and ``units`` 2048 are its large network, 256 and 1024 its small one.
Changed: the alphabet is the data's most frequent characters and not that of English, a text is not turned back to
front, and the weights start as of Glorot and Bengio 2010: with the paper's deviation of 0.02 the small one learns
nothing from few thousand texts. The preset trains with Adam (the paper: SGD with momentum).
"""

import keras
from keras import layers, ops

KIND = "text"
SPECIAL = 4  # of the numbers of tokens, the first are no characters
PRESET = {
    "epochs": 10,
    "batch": 128,
    "optimizer": "adam",
    "learning_rate": 5e-4,
    "schedule": "cosine",
    "warmup": 0.5,
    "tokens": "characters",
    "vocabulary": 70,  # section 2.3
    "length": 1014,
}

# Table 1: kernel, pool (None: N/A)
CONVOLUTIONS = ((7, 3), (7, 3), (3, None), (3, None), (3, None), (3, 3))


def build(
    words: int,
    classes: int = 2,
    length: int = 1014,
    features: int = 256,
    units: int = 1024,
    dropout: float = 0.5,
    width: float = 1.0,
) -> keras.Model:
    """Maps texts, int32 characters (batch, length) filled up with 0, to ``classes`` probabilities.

    Args:
        words: numbers that a character may have.
        classes: number of classes.
        length: characters of a text.
        features: maps of each convolution.
        units: of each hidden dense layer.
        dropout: share of their outputs that is set to 0.
        width: multiplies ``features`` and ``units``.

    Raises:
        ValueError: texts of this length leave nothing after the last pooling.
    """
    if length < 123:
        raise ValueError(f"length has to be at least 123 characters; got {length}")
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    x = ops.one_hot(tokens - SPECIAL, words - SPECIAL, dtype="float32")  # (1014, 70); others are all zero
    for number, (size, pool) in enumerate(CONVOLUTIONS, start=1):
        x = layers.Conv1D(round(features * width), size, activation="relu", name=f"conv{number}")(x)
        if pool:
            x = layers.MaxPooling1D(pool, name=f"pool{number}")(x)  # 336, 110, and after the last 34
    x = layers.Flatten(name="flatten")(x)  # (8704,) in the small network
    for number in (7, 8):  # table 2
        x = layers.Dense(round(units * width), activation="relu", name=f"dense{number}")(x)
        x = layers.Dropout(dropout)(x)
    return keras.Model(tokens, layers.Dense(classes, "softmax", dtype="float32", name="output")(x), name="char_cnn")
