"""GoogLeNet: nine inception modules, and in training two auxiliary classifiers.

Source: Szegedy et al. 2014, "Going Deeper with Convolutions", arXiv:1409.4842, table 1, figure 3 and section 5.
6,998,552 parameters without the auxiliary heads, for 224x224 pictures of 1000 classes. Changed: initial
weights; pixels are scaled to -1..1 instead of centred on the mean.
"""

import keras
from keras import layers, ops

KIND = "images"

# Table 1: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool proj
INCEPTION = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
INITIAL = "he_normal"  # He et al. 2015, arXiv:1502.01852; 22 layers without it rest at chance for epochs
STEMS = ("imagenet", "small")
LOSS_WEIGHTS = {"output": 1.0, "auxiliary_4a": 0.3, "auxiliary_4d": 0.3}  # section 5


def local_response(x, k=1.0, n=5, alpha=1e-4, beta=0.75):
    """Divides each value by the activity of its ``n`` neighbouring maps: shape unchanged.

    Source: Krizhevsky et al. 2012, section 3.3, with k = 1 and alpha over n, as in BVLC's Caffe replication.
    """
    number = ops.cumsum(ops.ones_like(x[0, 0, 0]))  # 1, 2, ... of the maps, as (channels,)
    near = ops.cast(ops.abs(number[:, None] - number) <= n // 2, x.dtype)
    # A product with a band matrix: three times as quick in training, forth and back, as a sum of shifted maps.
    activity = ops.matmul(ops.square(x), near)
    return x * ops.exp(-beta * ops.log(k + alpha / n * activity))


def inception(x, widths: tuple[int, ...], name: str):
    """Inception module with dimension reductions (figure 2b): (h, w, c) -> (h, w, sum of the four branches)."""
    one, reduce3, three, reduce5, five, projection = widths

    def convolution(x, maps, size, part):
        return layers.Conv2D(
            maps, size, padding="same", activation="relu", kernel_initializer=INITIAL, name=f"{name}_{part}"
        )(x)

    branches = [
        convolution(x, one, 1, "1x1"),
        convolution(convolution(x, reduce3, 1, "3x3_reduce"), three, 3, "3x3"),
        convolution(convolution(x, reduce5, 1, "5x5_reduce"), five, 5, "5x5"),
        convolution(layers.MaxPooling2D(3, 1, "same", name=f"{name}_pool")(x), projection, 1, "pool_proj"),
    ]
    return layers.Concatenate(name=name)(branches)


def auxiliary(x, classes: int, width: float, name: str):
    """Auxiliary classifier (section 5): average pooling 5x5/3, 128 1x1 maps, 1024 units, 70 % dropout, softmax."""
    if min(x.shape[1:3]) >= 5:
        x = layers.AveragePooling2D(5, 3)(x)  # (4, 4, c)
    x = layers.Conv2D(round(width * 128), 1, activation="relu", kernel_initializer=INITIAL)(x)
    x = layers.Dense(round(width * 1024), activation="relu", kernel_initializer=INITIAL)(layers.Flatten()(x))
    return layers.Dense(classes, "softmax", dtype="float32", name=name)(layers.Dropout(0.7)(x))


def pool(x, antialias: bool, name: str):
    """Max pooling 3x3 with stride 2, padded; ``antialias`` as of Zhang 2019, arXiv:1904.11486, section 3.2.

    That is the maximum at every place, then every second place after the filter [1, 2, 1] / 4 - twice the average of
    two neighbours - in both directions. The edge is repeated once on all sides, so that the filter lies symmetrically
    about the places that are kept - 0, 2, ... - and the size is that of plain pooling.
    """
    if not antialias:
        return layers.MaxPooling2D(3, 2, "same", name=name)(x)
    x = layers.MaxPooling2D(3, 1, "same", name=f"{name}_max")(x)
    x = ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="symmetric")
    x = layers.AveragePooling2D(2, 1, name=f"{name}_average")(x)
    return layers.AveragePooling2D(2, 2, name=name)(x)


def build(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    stem: str = "imagenet",
    heads: bool = False,
    antialias: bool = False,
    width: float = 1.0,
) -> keras.Model:
    """Maps pictures of ``input_shape``, pixels 0..255, to ``classes`` probabilities.

    Args:
        input_shape: (height, width, channels), at least 32x32 for the stem imagenet and 8x8 for small.
        classes: number of classes.
        stem: ``imagenet`` divides the size by 8 before the first inception module (7x7 with stride 2 and two
            poolings), ``small`` by 2 (3x3 with stride 1 and one pooling).
        heads: add the outputs ``auxiliary_4a`` and ``auxiliary_4d``, for training.
        antialias: blur before each pooling takes every second place (Zhang 2019); same sizes and parameters. The first
            convolution keeps its stride, as in the author's code: without, it costs four times.
        width: factor of all maps and units.
    """
    if stem not in STEMS:
        raise ValueError(f"stem must be one of {', '.join(STEMS)}; got {stem!r}.")

    def maps(number: int) -> int:
        return max(1, round(width * number))

    image = keras.Input(input_shape, name="image")  # (224, 224, 3)
    x = layers.Rescaling(2 / 255, offset=-1.0)(image)
    if stem == "imagenet":
        x = layers.Conv2D(maps(64), 7, 2, "same", activation="relu", kernel_initializer=INITIAL, name="conv1")(
            x
        )  # (112, 112, 64)
        x = pool(x, antialias, "pool1")  # (56, 56, 64)
    else:
        x = layers.Conv2D(maps(64), 3, padding="same", activation="relu", kernel_initializer=INITIAL, name="conv1")(x)
    x = layers.Conv2D(maps(64), 1, activation="relu", kernel_initializer=INITIAL, name="conv2_reduce")(
        local_response(x)
    )  # (56, 56, 64)
    x = layers.Conv2D(maps(192), 3, padding="same", activation="relu", kernel_initializer=INITIAL, name="conv2")(
        x
    )  # (56, 56, 192)
    x = pool(local_response(x), antialias, "pool2")  # (28, 28, 192)
    outputs = {}
    for name, widths in INCEPTION.items():
        if name in ("4a", "5a"):
            x = pool(x, antialias, f"pool{int(name[0]) - 1}")  # (14, 14, 480), (7, 7, 832)
        x = inception(x, tuple(map(maps, widths)), name)
        if heads and name in ("4a", "4d"):
            outputs[f"auxiliary_{name}"] = auxiliary(x, classes, width, f"auxiliary_{name}")
    x = layers.GlobalAveragePooling2D(name="average")(x)  # (1024,)
    x = layers.Dropout(0.4)(x)
    output = layers.Dense(classes, "softmax", dtype="float32", name="output")(x)
    return keras.Model(image, {"output": output, **outputs} if heads else output, name="googlenet")
