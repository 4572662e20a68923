"""Conv2D-Conv2D-MaxPooling2D-Dropout-Flatten-Dense-Dropout-Softmax: the network of the course notes.

Source: keras-team/keras 2, examples/mnist_cnn.py. 1,199,882 parameters for 28x28x1 pictures of 10 classes.
"""

import keras
from keras import layers

KIND = "images"


def build(
    input_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
    maps: tuple[int, int] = (32, 64),
    units: int = 128,
    dropout: tuple[float, float] = (0.25, 0.5),
    width: float = 1.0,
) -> keras.Model:
    """Maps pictures of ``input_shape``, pixels 0..255, to ``classes`` probabilities.

    Args:
        input_shape: (height, width, channels), at least 6x6.
        classes: number of classes.
        maps: feature maps of the two convolutions.
        units: units of the dense layer.
        dropout: share of values dropped after pooling, and after the dense layer.
        width: factor of all maps and units.
    """
    first, second, hidden = (round(width * number) for number in (*maps, units))
    image = keras.Input(input_shape, name="image")  # (28, 28, 1)
    x = layers.Rescaling(1 / 255)(image)
    x = layers.Conv2D(first, 3, activation="relu", name="conv1")(x)  # (26, 26, 32)
    x = layers.Conv2D(second, 3, activation="relu", name="conv2")(x)  # (24, 24, 64)
    x = layers.MaxPooling2D(2, name="pool")(x)  # (12, 12, 64)
    x = layers.Dropout(dropout[0], name="dropout1")(x)
    x = layers.Dense(hidden, activation="relu", name="dense")(layers.Flatten()(x))
    x = layers.Dropout(dropout[1], name="dropout2")(x)
    return keras.Model(image, layers.Dense(classes, "softmax", dtype="float32", name="output")(x), name="plain_cnn")
