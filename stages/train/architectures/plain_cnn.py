"""Conv2D-Conv2D-MaxPooling2D-Dropout-Flatten-Dense-Dropout-Softmax: the network of the course notes.

Source: keras-team/keras 2, examples/mnist_cnn.py. 1,199,882 parameters for 28x28x1 pictures of 10 classes.
"""

import keras
from keras import layers, ops

KIND = "images"


def pool(x, antialias: bool, name: str):
    """Max pooling 2x2: (h, w, c) -> (h/2, w/2, c); ``antialias`` as of Zhang 2019, arXiv:1904.11486, section 3.2.

    That is the maximum at every place, then every second place after the filter [1, 2, 1] / 4 - twice the average of
    two neighbours - in both directions. The edge is repeated once on all sides, so that the filter lies symmetrically
    about the places that the plain pooling keeps, and the size is the same.
    """
    if not antialias:
        return layers.MaxPooling2D(2, name=name)(x)
    x = layers.MaxPooling2D(2, 1, name=f"{name}_max")(x)
    x = ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="symmetric")
    x = layers.AveragePooling2D(2, 1, name=f"{name}_average")(x)
    return layers.AveragePooling2D(2, name=name)(x)


def build(
    input_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
    maps: tuple[int, int] = (32, 64),
    units: int = 128,
    dropout: tuple[float, float] = (0.25, 0.5),
    antialias: bool = False,
    width: float = 1.0,
) -> keras.Model:
    """Maps pictures of ``input_shape``, pixels 0..255, to ``classes`` probabilities.

    Args:
        input_shape: (height, width, channels), at least 6x6.
        classes: number of classes.
        maps: feature maps of the two convolutions.
        units: units of the dense layer.
        dropout: share of values dropped after pooling, and after the dense layer.
        antialias: blur before the pooling takes every second place (Zhang 2019); same sizes, same parameters.
        width: factor of all maps and units.
    """
    first, second, hidden = (round(width * number) for number in (*maps, units))
    image = keras.Input(input_shape, name="image")  # (28, 28, 1)
    x = layers.Rescaling(1 / 255)(image)
    x = layers.Conv2D(first, 3, activation="relu", name="conv1")(x)  # (26, 26, 32)
    x = layers.Conv2D(second, 3, activation="relu", name="conv2")(x)  # (24, 24, 64)
    x = pool(x, antialias, "pool")  # (12, 12, 64)
    x = layers.Dropout(dropout[0], name="dropout1")(x)
    x = layers.Dense(hidden, activation="relu", name="dense")(layers.Flatten()(x))
    x = layers.Dropout(dropout[1], name="dropout2")(x)
    return keras.Model(image, layers.Dense(classes, "softmax", dtype="float32", name="output")(x), name="plain_cnn")
