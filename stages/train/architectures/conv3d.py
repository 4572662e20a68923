"""Convolutions over volumes and clips: a plain stack, and a residual network.

Source: ``stack`` is C3D, Tran et al. 2014, "Learning Spatiotemporal Features with 3D Convolutional Networks",
arXiv:1412.0767, section 3.1 and figure 3; 78.0 million parameters below its last layer. ``resnet`` is R3D, Tran et al.
2017, "A Closer Look at Spatiotemporal Convolutions for Action Recognition", arXiv:1711.11248, table 1; 33,371,472
parameters with 18 layers and 400 classes, as in torchvision. Changed: voxels are scaled to -1..1; for small volumes a
stem and a depth of 10; dropout before the last layer of the resnet; the stack can do with narrower hidden layers and
with batch normalisation, without which narrow ones hardly learn.
"""

import keras
from keras import layers, ops

KIND = "volumes"
PRESET = {
    "epochs": 15,
    "batch": 32,
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "weight_decay": 1e-2,
    "schedule": "cosine",
    "warmup": 1,
    "ema": 0.99,
}

# Figure 3 of C3D: convolutions with their maps, then the pool (depth, height, width)
STACK = {
    "1": ((64,), (1, 2, 2)),
    "2": ((128,), (2, 2, 2)),
    "3": ((256, 256), (2, 2, 2)),
    "4": ((512, 512), (2, 2, 2)),
    "5": ((512, 512), (2, 2, 2)),
}
# Table 1 of R3D: basic blocks of conv2_x to conv5_x
BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
STYLES = ("stack", "resnet")
STEMS = ("video", "small")


def build(
    input_shape: tuple[int, int, int, int] = (16, 112, 112, 3),
    classes: int = 400,
    style: str = "resnet",
    depth: int = 18,
    stem: str = "video",
    units: int = 4096,
    normalise: bool = False,
    dropout: float = 0.5,
    antialias: bool = False,
    width: float = 1.0,
) -> keras.Model:
    """Maps volumes, uint8 of ``input_shape`` (depth, height, width, channels), to ``classes`` probabilities.

    Args:
        input_shape: any size.
        classes: number of classes.
        style: stack or resnet.
        depth: layers of the resnet: 10, 18 or 34.
        stem: of the resnet: ``video`` is the paper's 3x7x7 with stride 1x2x2, ``small`` 3x3x3 with stride 1.
        units: of each hidden dense layer of the stack.
        normalise: batch normalisation in the stack.
        dropout: before the last layer, and in the stack after each hidden dense layer.
        antialias: blur before every second place is taken, in the blocks of the resnet and the pooling of the stack
            (Zhang 2019); same sizes and parameters. The first convolution keeps its stride.
        width: multiplies all maps.

    Raises:
        ValueError: an option has another value.
    """
    if style not in STYLES:
        raise ValueError(f"style has to be one of {', '.join(STYLES)}; got {style!r}")
    volume = keras.Input(input_shape, dtype="uint8", name="volume")
    x = layers.Rescaling(1 / 127.5, -1.0, name="scale")(volume)
    if style == "stack":
        x = stack(x, units, normalise, dropout, antialias, width)
    else:
        x = resnet(x, depth, stem, dropout, antialias, width)
    return keras.Model(
        volume, layers.Dense(classes, "softmax", dtype="float32", name="output")(x), name=f"conv3d_{style}"
    )


def stack(x, units: int, normalise: bool, dropout: float, antialias: bool, width: float):
    """Figure 3 of C3D: all kernels are 3x3x3; at (16, 112, 112, 3) pool5 gives (1, 4, 4, 512)."""
    for stage, (maps, pool) in STACK.items():
        for letter, number in zip("ab", maps, strict=False):
            x = layers.Conv3D(round(number * width), 3, padding="same", name=f"conv{stage}{letter}")(x)
            if normalise:
                x = layers.BatchNormalization(momentum=0.9, name=f"bn{stage}{letter}")(x)
            x = layers.ReLU(name=f"relu{stage}{letter}")(x)
        if antialias:
            x = layers.MaxPooling3D(pool, 1, "same", name=f"pool{stage}_max")(x)
            x = blur(x, pool, f"pool{stage}")
        else:
            x = layers.MaxPooling3D(pool, padding="same", name=f"pool{stage}")(x)
    x = layers.Flatten(name="flatten")(x)
    for number in (6, 7):
        x = layers.Dense(round(units * width), activation="relu", name=f"fc{number}")(x)
        x = layers.Dropout(dropout)(x)
    return x


def resnet(x, depth: int, stem: str, dropout: float, antialias: bool, width: float):
    """Table 1 of R3D: at (16, 112, 112, 3) conv5_x gives (2, 7, 7, 512), then the mean of each map."""
    if depth not in BLOCKS:
        raise ValueError(f"depth has to be one of {', '.join(map(str, BLOCKS))}; got {depth}")
    if stem not in STEMS:
        raise ValueError(f"stem has to be one of {', '.join(STEMS)}; got {stem!r}")
    kernel, stride = ((3, 7, 7), (1, 2, 2)) if stem == "video" else (3, 1)
    x = convolution(x, round(64 * width), kernel, stride, "conv1")
    for stage, blocks in enumerate(BLOCKS[depth], start=2):
        for number in range(1, blocks + 1):
            stride = 2 if stage > 2 and number == 1 else 1
            x = basic(x, round(64 * 2 ** (stage - 2) * width), stride, antialias, f"conv{stage}_{number}")
    return layers.Dropout(dropout)(layers.GlobalAveragePooling3D(name="average")(x))


def basic(x, maps: int, stride: int, antialias: bool, name: str):
    """Two convolutions and a skip connection, which projects where sizes differ."""
    if antialias and stride > 1:
        y = blur(convolution(x, maps, 3, 1, f"{name}a"), (stride,) * 3, f"{name}a_blur")
        x, stride = blur(x, (stride,) * 3, f"{name}_skip_blur"), 1
    else:
        y = convolution(x, maps, 3, stride, f"{name}a")
    y = convolution(y, maps, 3, 1, f"{name}b", activation=False)
    if stride > 1 or x.shape[-1] != maps:
        x = convolution(x, maps, 1, stride, f"{name}_skip", activation=False)
    return layers.ReLU(name=name)(x + y)


def convolution(x, maps: int, kernel, stride, name: str, activation: bool = True):
    """Convolution, batch normalisation and, unless told otherwise, ReLU."""
    x = layers.Conv3D(maps, kernel, stride, "same", use_bias=False, kernel_initializer="he_normal", name=name)(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if activation else x


def blur(x, strides: tuple[int, int, int], name: str):
    """Along axes of stride 2 the filter [1, 2, 1] / 4, then every second place; sizes are halved, rounded up.

    The filter is twice the average of two neighbours; the edge is repeated once on both sides, so that it lies
    symmetrically about the places that are kept: 0, 2, ...

    Source: Zhang 2019, "Making Convolutional Networks Shift-Invariant Again", arXiv:1904.11486, section 3.2.
    """
    x = ops.pad(x, [[0, 0], *([stride - 1] * 2 for stride in strides), [0, 0]], mode="symmetric")
    x = layers.AveragePooling3D(strides, 1, name=f"{name}_average")(x)  # of one place where the stride is 1
    return layers.AveragePooling3D(strides, strides, name=name)(x)
