"""The network of an entry: an architecture, built for the data."""

import inspect
from importlib import import_module
from types import ModuleType
from typing import Any

import keras

from convoy.data.shards import Shards
from convoy.data.vocabulary import Vocabulary
from convoy.errors import ConfigurationError


def build(
    architecture: str, data: Shards, input_spec: dict[str, Any], sizes: dict[str, Any], heads: bool = True
) -> keras.Model:
    """Returns an untrained network for the data, with its auxiliary outputs if it has some and ``heads``.

    Raises:
        ConfigurationError: it refuses the data or the sizes.
    """
    auxiliary = {"heads": True} if heads and len(loss_weights(architecture)) > 1 else {}
    found = data_arguments(architecture, data, input_spec)
    try:
        return _module(architecture).build(**found, **auxiliary, **sizes)
    except (ValueError, TypeError) as error:
        known = ", ".join(f"{name} = {value}" for name, value in found.items())
        raise ConfigurationError(
            f"{architecture} cannot be built for {known} with the sizes {sizes}: {error}"
        ) from error


def data_arguments(architecture: str, data: Shards, input_spec: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of an architecture's ``build`` that follow from the data."""
    if "target" in input_spec:
        found = {f"{side}_words": len(Vocabulary.from_json(input_spec[side])) for side in ("source", "target")}
        found |= {"length": input_spec["length"]}
    else:
        found = {"classes": len(input_spec["classes"])}
        if "text" in input_spec:
            found |= {"words": len(Vocabulary.from_json(input_spec["text"])), "length": input_spec["length"]}
        else:
            found |= {"input_shape": data.shape(input_spec["array"])}
    build = _module(architecture).build
    return {name: found[name] for name in inspect.signature(build).parameters if name in found}


def loss_weights(architecture: str) -> dict[str, float]:
    """Returns the weight of each output's loss; an architecture without auxiliary outputs has one, ``output``."""
    return getattr(_module(architecture), "LOSS_WEIGHTS", {"output": 1.0})


def in_float32(
    model: keras.Model, architecture: str, data: Shards, input_spec: dict[str, Any], sizes: dict[str, Any]
) -> keras.Model:
    """Returns a network with the weights of ``model``, which computed in less, that computes in float32 everywhere."""
    weights = model.get_weights()
    keras.utils.clear_session()  # the names of layers begin at 0 again
    plain = build(architecture, data, input_spec, sizes, heads=False)
    plain = keras.Model(plain.input, plain.output, name=plain.name)
    plain.set_weights(weights)
    return plain


def _module(architecture: str) -> ModuleType:
    return import_module(f"stages.train.architectures.{architecture}")
