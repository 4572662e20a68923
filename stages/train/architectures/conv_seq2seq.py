"""Translation by convolutions: every word of the source at once, the target from what is there so far.

Source: Gehring, Auli, Grangier, Yarats and Dauphin 2017, "Convolutional Sequence to Sequence Learning",
arXiv:1705.03122; the sizes are those of its authors' code for a small corpus (IWSLT 2014). Changed: no weight
normalisation, which Adam (the paper: Nesterov's momentum) makes up for; the preset smooths labels.
"""

import keras
from keras import layers, ops

KIND = "translation"
PRESET = {
    "epochs": 16,
    "batch": 64,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "warmup": 1,
    "clip_norm": 1.0,
    "label_smoothing": 0.1,
    "tokens": "subwords",
}
HALF = 0.5**0.5  # a sum of two times it keeps their variance (section 3.5)


def build(
    source_words: int,
    target_words: int,
    length: int = 1024,
    encoder: int = 4,
    decoder: int = 3,
    embedding: int = 256,
    units: int = 256,
    kernel: int = 3,
    dropout: float = 0.2,
    width: float = 1.0,
) -> keras.Model:
    """Maps source tokens and the target so far to the logits of the target's next tokens.

    Input: ``source`` int32 (batch, time), ``target`` int32 (batch, steps), both filled up with 0 and of at most
    ``length`` and ``length`` + 1 tokens. Output: (batch, steps, target_words), before the softmax.

    The networks ``encoder`` and ``decoder`` are layers of the model. The decoder takes what it has to know of the
    tokens before - ``past``, a tensor for each layer - and gives it back with those of the call, so a target can be
    had token by token, at the price of one token each.

    Args:
        source_words: numbers that a source token may have.
        target_words: numbers that a target token may have.
        length: longest source and target, in tokens.
        encoder: layers.
        decoder: layers, each with an attention of its own.
        embedding: length of a token's vector.
        units: maps of each layer.
        kernel: width of the windows, in tokens.
        dropout: share of the inputs of each layer that is set to 0 in training.
        width: multiplies ``embedding`` and ``units``.

    Raises:
        ValueError: kernel is below 2, so that no token would see another, or there is no decoder layer.
    """
    if kernel < 2 or decoder < 1:
        raise ValueError(f"kernel has to be at least 2 and decoder at least 1; got {kernel} and {decoder}")
    size, units = round(embedding * width), round(units * width)
    source = keras.Input((None,), dtype="int32", name="source")
    target = keras.Input((None,), dtype="int32", name="target")
    encode = encoder_network(source_words, length, encoder, size, units, kernel, dropout, attentions=decoder)
    decode = decoder_network(target_words, length + 1, decoder, size, units, kernel, dropout)
    keys, values, there = encode(source)
    first = ops.zeros_like(target[:, :1])  # the position of the first target token
    past = ops.repeat(ops.zeros_like(keys[:, :1, :1]), kernel - 1, axis=1)  # nothing is before it
    found = decode([target, first, keys, values, there, *[ops.repeat(past, units, axis=2)] * decoder])
    return keras.Model([source, target], layers.Identity(name="output")(found[0]), name="conv_seq2seq")


def encoder_network(words, length, depth, size, units, kernel, dropout, attentions) -> keras.Model:
    """Section 3.2: tokens (time,) -> keys (time, size), values (time, size), which are no filling (time, 1)."""
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    there = ops.cast(ops.not_equal(tokens, 0), "float32")[..., None]
    places = ops.cumsum(ops.ones_like(tokens), axis=1) - 1
    embedded = layers.Dropout(dropout)(embed(tokens, places, words, length, size)) * there
    x = dense(units, 1 - dropout, "in")(embedded)
    for number in range(1, depth + 1):
        # Filling is zero before every convolution, like what lies beyond the end of a sentence.
        y = layers.Dropout(dropout)(x * there)
        y = convolution(units, kernel, "same", dropout, f"conv{number}")(y)
        x = (x + glu(y)) * HALF
    keys = dense(size, 1, "out")(x)
    share = 1 / (2 * attentions)  # as many attentions send their gradients here (section 3.5)
    keys = keys * share + ops.stop_gradient(keys) * (1 - share)
    return keras.Model(tokens, [keys, (keys + embedded) * HALF, there], name="encoder")


def decoder_network(words, length, depth, size, units, kernel, dropout) -> keras.Model:
    """Section 3.2 and 3.3: -> logits (steps, words), attention (steps, time), the past of the next call."""
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    first = keras.Input((1,), dtype="int32", name="first")
    keys, values = keras.Input((None, size), name="keys"), keras.Input((None, size), name="values")
    there = keras.Input((None, 1), name="there")
    past = [keras.Input((kernel - 1, units), name=f"past{number}") for number in range(1, depth + 1)]
    places = ops.cumsum(ops.ones_like(tokens), axis=1) - 1 + first
    embedded = layers.Dropout(dropout)(embed(tokens, places, words, length, size))
    x = dense(units, 1 - dropout, "in")(embedded)
    after, weights = [], []
    for number, before in enumerate(past, start=1):
        y = ops.concatenate([before, layers.Dropout(dropout)(x)], axis=1)  # so none sees what comes after it
        after.append(y[:, -(kernel - 1) :])
        y = glu(convolution(units, kernel, "valid", dropout, f"conv{number}")(y))
        y, weight = attention(y, embedded, keys, values, there, size, number)
        x = (x + y) * HALF
        weights.append(weight)
    x = layers.Dropout(dropout)(dense(size, 1, "out")(x))
    logits = dense(words, 1 - dropout, "words")(x)
    looked = layers.Average(name="attention")(weights) if depth > 1 else weights[0]
    return keras.Model([tokens, first, keys, values, there, *past], [logits, looked, *after], name="decoder")


def attention(x, embedded, keys, values, there, size, number):
    """Section 3.3, equations 1 and 2: adds to each step what it looks for in the source; also how it looks."""
    query = (dense(size, 1, f"query{number}")(x) + embedded) * HALF
    scores = ops.matmul(query, ops.transpose(keys, (0, 2, 1))) + (ops.transpose(there, (0, 2, 1)) - 1) * 1e9
    weights = ops.softmax(scores, axis=-1)  # (steps, time)
    found = ops.matmul(weights, values) * ops.sqrt(ops.sum(there, axis=1, keepdims=True))  # m sqrt(1/m), section 3.5
    return (x + dense(x.shape[-1], 1, f"found{number}")(found)) * HALF, weights


def embed(tokens, places, words, length, size):
    """Section 3.1: the vector of a token plus that of its place; only filling stands beyond ``length``."""
    normal = keras.initializers.RandomNormal(stddev=0.1)
    vectors = layers.Embedding(words, size, normal, name="embedding")(tokens)
    return vectors + layers.Embedding(length, size, normal, name="places")(ops.minimum(places, length - 1))


def dense(units, kept, name):
    """A linear map that keeps the variance of its input, of which dropout left ``kept`` (section 3.5)."""
    normal = keras.initializers.VarianceScaling(kept, "fan_in", "untruncated_normal")
    return layers.Dense(units, kernel_initializer=normal, name=name)


def convolution(units, kernel, padding, dropout, name):
    """A convolution for ``glu``: twice the maps, four times the variance (section 3.5)."""
    normal = keras.initializers.VarianceScaling(4 * (1 - dropout), "fan_in", "untruncated_normal")
    return layers.Conv1D(2 * units, kernel, padding=padding, kernel_initializer=normal, name=name)


def glu(x):
    """Gated linear unit (section 3.2): (time, 2 units) -> (time, units)."""
    value, gate = ops.split(x, 2, axis=-1)
    return value * ops.sigmoid(gate)
