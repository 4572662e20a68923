"""AlexNet: five convolutions, overlapping pooling, local response normalisation, three dense layers.

Source: Krizhevsky, Sutskever, Hinton 2012, "ImageNet Classification with Deep Convolutional Neural Networks",
sections 3.1-3.5 and figure 2. 62,378,344 parameters in one column (``groups=1``), 60,965,224 in the paper's two
columns (``groups=2``), for 227x227 pictures (the paper says 224, from which its 55x55 maps do not follow).
Changed: Keras' initial weights instead of Gaussians of deviation 0.01 with biases of 0 and 1; pixels are scaled to
-1..1 instead of centred on the mean picture.
"""

import keras
from keras import layers, ops

KIND = "images"

# Figure 2: maps of the five convolutions, units of the two hidden dense layers
MAPS = (96, 256, 384, 384, 256)
UNITS = (4096, 4096)
STEMS = {"imagenet": {"kernel_size": 11, "strides": 4}, "small": {"kernel_size": 3, "padding": "same"}}


def local_response(x, k=2.0, n=5, alpha=1e-4, beta=0.75):
    """Divides each value by the activity of its ``n`` neighbouring maps (section 3.3): shape unchanged."""
    number = ops.cumsum(ops.ones_like(x[0, 0, 0]))  # 1, 2, ... of the maps, as (channels,)
    near = ops.cast(ops.abs(number[:, None] - number) <= n // 2, x.dtype)
    # A product with a band matrix: three times as quick in training, forth and back, as a sum of shifted maps.
    activity = ops.matmul(ops.square(x), near)
    return x * ops.exp(-beta * ops.log(k + alpha * activity))


def convolution(x, maps: int, size: int, groups: int, name: str):
    """Convolution in ``groups`` columns that do not see each other (section 3.5): (h, w, c) -> (h, w, maps)."""
    # Split and joined: a convolution with groups has no gradient on TensorFlow's CPU kernels.
    columns = [x] if groups == 1 else ops.split(x, groups, axis=-1)
    names = [name] if groups == 1 else [f"{name}_{column}" for column in range(groups)]
    outputs = [
        layers.Conv2D(maps // groups, size, padding="same", activation="relu", name=label)(column)
        for column, label in zip(columns, names, strict=True)
    ]
    return outputs[0] if groups == 1 else layers.Concatenate(name=name)(outputs)


def pool(x, antialias: bool, name: str):
    """Max pooling 3x3 with stride 2; ``antialias`` as of Zhang 2019, arXiv:1904.11486, section 3.2.

    That is the maximum at every place, then every second place after the filter [1, 2, 1] / 4 - twice the average of
    two neighbours - in both directions. The edge is repeated once on all sides, so that the filter lies symmetrically
    about the places that the plain pooling keeps, and the size is the same.
    """
    if not antialias:
        return layers.MaxPooling2D(3, 2, name=name)(x)
    x = layers.MaxPooling2D(3, 1, name=f"{name}_max")(x)
    x = ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="symmetric")
    x = layers.AveragePooling2D(2, 1, name=f"{name}_average")(x)
    return layers.AveragePooling2D(2, 2, name=name)(x)


def build(
    input_shape: tuple[int, int, int] = (227, 227, 3),
    classes: int = 1000,
    stem: str = "imagenet",
    groups: int = 1,
    dropout: float = 0.5,
    antialias: bool = False,
    width: float = 1.0,
) -> keras.Model:
    """Maps pictures of ``input_shape``, pixels 0..255, to ``classes`` probabilities.

    Args:
        input_shape: (height, width, channels), at least 67x67 for the stem imagenet and 15x15 for small.
        classes: number of classes.
        stem: first convolution; ``imagenet`` is 11x11 with stride 4, ``small`` 3x3 with stride 1.
        groups: columns of conv2, conv4 and conv5; 2 in the paper, for two GPUs.
        dropout: share of the outputs of each hidden dense layer that is dropped (section 4.2).
        antialias: blur before each pooling takes every second place (Zhang 2019); same sizes and parameters. The first
            convolution keeps its stride, as in the author's code: without, it costs sixteen times.
        width: factor of all maps and units.
    """
    if stem not in STEMS:
        raise ValueError(f"stem must be one of {', '.join(STEMS)}; got {stem!r}.")
    # Multiples of the groups, so that the columns are equal
    maps = [groups * max(1, round(width * number / groups)) for number in MAPS]
    units = [round(width * number) for number in UNITS]
    image = keras.Input(input_shape, name="image")  # (227, 227, 3)
    x = layers.Rescaling(2 / 255, offset=-1.0)(image)
    x = layers.Conv2D(maps[0], activation="relu", name="conv1", **STEMS[stem])(x)  # (55, 55, 96)
    x = pool(local_response(x), antialias, "pool1")  # (27, 27, 96)
    x = convolution(x, maps[1], 5, groups, "conv2")  # (27, 27, 256)
    x = pool(local_response(x), antialias, "pool2")  # (13, 13, 256)
    x = convolution(x, maps[2], 3, 1, "conv3")  # (13, 13, 384); sees both columns
    x = convolution(x, maps[3], 3, groups, "conv4")  # (13, 13, 384)
    x = convolution(x, maps[4], 3, groups, "conv5")  # (13, 13, 256)
    x = layers.Flatten()(pool(x, antialias, "pool5"))  # (6, 6, 256) -> 9216
    for name, number in zip(("fc6", "fc7"), units, strict=True):
        x = layers.Dropout(dropout)(layers.Dense(number, activation="relu", name=name)(x))
    return keras.Model(image, layers.Dense(classes, "softmax", dtype="float32", name="output")(x), name="alexnet")
