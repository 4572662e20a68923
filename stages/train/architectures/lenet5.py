"""LeNet-5 for small grey pictures.

Source: LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition", figure 2 and section II.B.
Variant: C3 sees all maps of S2 (the paper's table I connects some), S2 and S4 are max pooling or plain averages (the
paper: trainable ones), the output is a softmax (the paper: radial basis functions). 61,706 parameters at the paper's
size. With strides instead of pooling as its predecessor: LeCun et al. 1989, "Backpropagation Applied to Handwritten
Zip Code Recognition", figure 3; the convolutions then cost a quarter.
Pixels are scaled as in section III.A: background -0.1, full ink 1.175.
"""

import keras
from keras import layers, ops

KIND = "images"


def pool(x, antialias: bool, name: str, pooling: str = "max"):
    """Pooling 2x2: (h, w, c) -> (h/2, w/2, c); ``antialias`` as of Zhang 2019, arXiv:1904.11486, section 3.2.

    That is the maximum at every place, then every second place after the filter [1, 2, 1] / 4 - twice the average of
    two neighbours - in both directions. The edge is repeated once on all sides, so that the filter lies symmetrically
    about the places that the plain pooling keeps, and the size is the same.
    """
    if pooling == "stride":
        return x
    if pooling == "average":
        return layers.AveragePooling2D(2, name=name)(x)
    if not antialias:
        return layers.MaxPooling2D(2, name=name)(x)
    x = layers.MaxPooling2D(2, 1, name=f"{name}_max")(x)
    x = ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="symmetric")
    x = layers.AveragePooling2D(2, 1, name=f"{name}_average")(x)
    return layers.AveragePooling2D(2, name=name)(x)


def build(
    input_shape: tuple[int, int, int] = (32, 32, 1),
    classes: int = 10,
    maps: tuple[int, int] = (6, 16),
    units: tuple[int, int] = (120, 84),
    kernel: int = 5,
    pooling: str = "max",
    activation: str = "tanh",
    antialias: bool = False,
    width: float = 1.0,
) -> keras.Model:
    """Maps pictures of ``input_shape``, pixels 0..255, to ``classes`` probabilities.

    Args:
        input_shape: (height, width, channels), at least 16x16.
        classes: number of classes.
        maps: feature maps of C1 and C3.
        units: units of C5 and F6.
        kernel: height and width of the kernels of C1 and C3.
        pooling: max; average as in the paper (there with a trainable factor and bias); or stride: C1 and C3 are
            computed at every second place.
        activation: of all layers but the last; any of Keras, the paper's is tanh.
        antialias: blur before each max pooling takes every second place (Zhang 2019); same sizes, same parameters.
        width: factor of all maps and units.

    Raises:
        ValueError: another ``pooling``; or one beside ``antialias``, which is for max pooling.
    """
    allowed = ("max",) if antialias else ("max", "average", "stride")
    if pooling not in allowed:
        raise ValueError(f"pooling can be {', '.join(allowed)}; got {pooling!r}.")
    c1, c3, c5, f6 = (round(width * number) for number in (*maps, *units))
    image = keras.Input(input_shape, name="image")  # (32, 32, 1)
    x = layers.Rescaling(1.275 / 255, offset=-0.1)(image)
    step = 2 if pooling == "stride" else 1
    x = layers.Conv2D(c1, kernel, step, activation=activation, name="c1")(x)  # (28, 28, 6)
    x = pool(x, antialias, "s2", pooling)  # (14, 14, 6)
    x = layers.Conv2D(c3, kernel, step, activation=activation, name="c3")(x)  # (10, 10, 16)
    x = pool(x, antialias, "s4", pooling)  # (5, 5, 16)
    x = layers.Dense(c5, activation=activation, name="c5")(layers.Flatten()(x))
    x = layers.Dense(f6, activation=activation, name="f6")(x)
    return keras.Model(image, layers.Dense(classes, "softmax", dtype="float32", name="output")(x), name="lenet5")
