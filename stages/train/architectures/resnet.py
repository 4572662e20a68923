"""Residual networks: 18 to 152 layers of the ImageNet family, 6n+2 layers of the CIFAR family.

Source: He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv:1512.03385, table 1 (ImageNet),
section 4.2 (CIFAR) and section 3.3 (skip connections). Parameters: 11,689,512 / 21,797,672 / 25,557,032 / 44,549,160 /
60,192,808 for 18 / 34 / 50 / 101 / 152 layers; 0.27 to 1.7 million for 20 to 110 on CIFAR. Changed: the 3x3
convolution of a bottleneck carries the stride (as in torchvision; same size); pixels are scaled to -1..1 instead of
centred on the mean pixel.
"""

import keras
from keras import layers, ops

KIND = "images"

# Table 1: blocks of conv2_x to conv5_x, and whether they are bottlenecks
IMAGENET = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
STEMS = ("imagenet", "small", "cifar")


def blur(x, stride: int, name: str):
    """Filter [1, 2, 1] / 4 in both directions, then every ``stride``-th place: (h, w, c) -> (h/stride, w/stride, c).

    The filter is twice the average of two neighbours; the edge is repeated once on all sides, so that it lies
    symmetrically about the places that are kept - 0, ``stride``, ... - which are those of the skip connection.

    Source: Zhang 2019, "Making Convolutional Networks Shift-Invariant Again", arXiv:1904.11486, section 3.2.
    """
    x = ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="symmetric")
    x = layers.AveragePooling2D(2, 1, name=f"{name}_average")(x)
    return layers.AveragePooling2D(2, stride, name=name)(x)


def convolution(x, maps: int, size: int, stride: int, name: str, activation: bool = True):
    """Convolution, batch normalisation and, unless told otherwise, ReLU: (h, w, c) -> (h/stride, w/stride, maps)."""
    x = layers.Conv2D(maps, size, stride, "same", use_bias=False, kernel_initializer="he_normal", name=f"{name}_conv")(
        x
    )
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if activation else x


def strided(x, maps: int, stride: int, antialias: bool, name: str):
    """3x3 convolution of a block that halves the size: with its stride, or with stride 1 and then blurred."""
    if stride == 1 or not antialias:
        return convolution(x, maps, 3, stride, name)
    return blur(convolution(x, maps, 3, 1, name), stride, f"{name}_blur")


def skip(x, maps: int, stride: int, shortcut: str, antialias: bool, name: str):
    """Skip connection (section 3.3): identity; A pads with zero maps, B projects where sizes differ, C always."""
    changed = stride > 1 or x.shape[-1] != maps
    if stride > 1 and antialias:
        x, stride = blur(x, stride, f"{name}_skip_blur"), 1
    if shortcut == "C" or (shortcut == "B" and changed):
        return convolution(x, maps, 1, stride, f"{name}_skip", activation=False)
    if not changed:
        return x
    x = x[:, ::stride, ::stride, :]
    return ops.pad(x, [[0, 0], [0, 0], [0, 0], [0, maps - x.shape[-1]]])


def basic(x, maps: int, stride: int, shortcut: str, antialias: bool, name: str):
    """Two 3x3 convolutions and a skip (figure 5, left): (h, w, c) -> (h/stride, w/stride, maps)."""
    y = strided(x, maps, stride, antialias, f"{name}_1")
    y = convolution(y, maps, 3, 1, f"{name}_2", activation=False)
    return layers.ReLU(name=name)(y + skip(x, maps, stride, shortcut, antialias, name))


def bottleneck(x, maps: int, stride: int, shortcut: str, antialias: bool, name: str):
    """1x1, 3x3, 1x1 convolutions and a skip (figure 5, right): (h, w, c) -> (h/stride, w/stride, 4 maps)."""
    y = convolution(x, maps, 1, 1, f"{name}_1")
    y = strided(y, maps, stride, antialias, f"{name}_2")
    y = convolution(y, 4 * maps, 1, 1, f"{name}_3", activation=False)
    return layers.ReLU(name=name)(y + skip(x, 4 * maps, stride, shortcut, antialias, name))


def pool(x, antialias: bool, name: str):
    """Max pooling 3x3 with stride 2; or with stride 1 and then blurred."""
    if not antialias:
        return layers.MaxPooling2D(3, 2, "same", name=name)(x)
    return blur(layers.MaxPooling2D(3, 1, "same", name=f"{name}_max")(x), 2, name)


def build(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    depth: int = 50,
    stem: str = "imagenet",
    shortcut: str | None = None,
    antialias: bool = False,
    width: float = 1.0,
) -> keras.Model:
    """Maps pictures of ``input_shape``, pixels 0..255, to ``classes`` probabilities.

    Args:
        input_shape: (height, width, channels).
        classes: number of classes.
        depth: weighted layers; 18, 34, 50, 101 or 152 for the stems imagenet and small, 6n+2 for cifar.
        stem: ``imagenet`` is 7x7 with stride 2 and a pooling, ``small`` 3x3 with stride 1 before the same blocks,
            ``cifar`` 3x3 before the three stages of 16, 32 and 64 maps of section 4.2.
        shortcut: option A, B or C of section 3.3; by default as published, A for cifar and B otherwise.
        antialias: blur before every second place is taken, in the blocks and the pooling (Zhang 2019); same sizes and
            parameters. The first convolution keeps its stride, as in the author's code: without, it costs four times.
        width: factor of all maps.
    """
    if stem not in STEMS:
        raise ValueError(f"stem must be one of {', '.join(STEMS)}; got {stem!r}.")
    if stem == "cifar" and (depth < 8 or (depth - 2) % 6):
        raise ValueError(f"depth must be 6n+2 (8, 14, 20, 32, 44, 56, 110, ...) for the stem cifar; got {depth}.")
    if stem != "cifar" and depth not in IMAGENET:
        raise ValueError(f"depth must be one of {', '.join(map(str, IMAGENET))} for the stem {stem}; got {depth}.")
    shortcut = shortcut or ("A" if stem == "cifar" else "B")
    if shortcut not in ("A", "B", "C"):
        raise ValueError(f"shortcut must be A, B or C; got {shortcut!r}.")
    blocks, bottlenecks = ([(depth - 2) // 6] * 3, False) if stem == "cifar" else IMAGENET[depth]
    block = bottleneck if bottlenecks else basic
    maps = max(1, round(width * (16 if stem == "cifar" else 64)))

    image = keras.Input(input_shape, name="image")  # (224, 224, 3)
    x = layers.Rescaling(2 / 255, offset=-1.0)(image)
    if stem == "imagenet":
        x = convolution(x, maps, 7, 2, "conv1")  # (112, 112, 64)
        x = pool(x, antialias, "pool1")  # (56, 56, 64)
    else:
        x = convolution(x, maps, 3, 1, "conv1")
    for stage, count in enumerate(blocks):  # imagenet: (56, 56), (28, 28), (14, 14), (7, 7)
        for number in range(count):
            stride = 2 if stage > 0 and number == 0 else 1
            x = block(x, maps * 2**stage, stride, shortcut, antialias, f"conv{stage + 2}_{number + 1}")
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(
        image, layers.Dense(classes, "softmax", dtype="float32", name="output")(x), name=f"resnet{depth}"
    )
