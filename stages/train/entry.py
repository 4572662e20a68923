"""What an entry of ``train:`` in params.yaml says, and how a training computes once nothing of it is open."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from convoy.errors import ConfigurationError
from convoy.schema import Above, Amount, Entry, Part, Positive, Seed, Share
from stages.train import signatures

READING = ("tokens", "vocabulary", "min_count", "case", "length")  # keys that say how texts are read
# Kind -> array of the shards, of those whose examples are not divided into tokens. Not from convoy.kinds: an edit of
# how a kind is read would train every model again.
ARRAYS = {"images": "image", "volumes": "volume"}


@dataclass(frozen=True)
class Policy:
    """How a training computes: the keys of an entry that may be ``auto``, once they are chosen; see ``policy.py``.

    Attributes:
        precision: of the layers.
        jit_compile: by XLA, or torch.compile.
        steps_per_execution: that the device takes before Python looks again.
        threads: that one operation is divided into; None: one per core.
    """

    precision: str
    jit_compile: bool
    steps_per_execution: int
    threads: int | None


def _complete(schema: dict[str, Any]) -> None:
    """Adds what the architectures' files say to the JSON schema: names, sizes, and the keys that presets leave open."""
    needed, schema["required"] = schema["required"], ["dataset", "architecture"]
    schema["properties"]["architecture"]["enum"] = signatures.architectures()
    schema["allOf"] = [
        {
            "if": {"properties": {"architecture": {"const": name}}, "required": ["architecture"]},
            "then": {
                "required": [key for key in needed if key not in signatures.preset(name)],
                "properties": {"sizes": {"properties": signatures.sizes(name), "additionalProperties": False}},
            },
        }
        for name in signatures.architectures()
    ]


class Train(Entry):
    """What is trained, on which data, and how; what an entry leaves out its architecture's ``PRESET`` says first."""

    model_config = ConfigDict(json_schema_extra=_complete)

    dataset: str
    """An entry of ingest."""
    architecture: str
    """A file of ``stages/train/architectures/``."""
    epochs: Positive
    """Passes over the augmented training split."""
    learning_rate: Amount
    """The largest of the schedule, per step."""
    sizes: dict[str, Any] = Field({})
    """Arguments of the architecture's ``build``, without those that follow from the data."""
    batch: Positive = 128
    """Examples per step."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    """sgd has ``momentum`` (Nesterov's), adam and adamw have their papers' constants."""
    momentum: Share = 0.9
    """Of sgd."""
    weight_decay: Amount = 0.0
    """Share of each kernel taken off per step, times the learning rate; biases, normalisation and embeddings are exempt
    (Loshchilov and Hutter 2017, arXiv:1711.05101)."""
    clip_norm: Above | None = None
    """Largest l2 norm of all gradients of a step together (Pascanu et al. 2013, arXiv:1211.5063)."""
    ema: Part = 0.0
    """The model keeps a moving average of its weights; each step replaces 1 - ema of it. 0: the last weights (Polyak
    and Juditsky 1992). The first steps replace more: step t, from 0, replaces 9 / (10 + t). Validation sees the
    average. Statistics of batch normalisation have an average of their own."""
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    """``constant``; ``step`` divides by 10 at ``milestones``; ``cosine`` falls to 0 at the end."""
    warmup: Amount = 0.0
    """Epochs over which the rate of the cosine schedule first rises from 0."""
    milestones: list[Share] = Field([0.5, 0.75])
    """Shares of the whole training, for ``step``."""
    label_smoothing: Share = 0.0
    """Share of the target probability that is spread over all classes."""
    class_weights: bool = False
    """Weigh every class equally, however many examples it has."""
    patience: Positive | None = None
    """Stop after so many epochs without a lower validation loss, and keep the best weights; by default train to the end
    and keep the last."""
    augmentation: dict[Literal["shift", "rotate", "scale", "flip", "noise"], Amount] = Field({})
    """Of pictures, other ones in every epoch, beside the copies of ``augment``: ``shift`` in pixels, ``rotate`` in
    degrees, ``scale`` as a share, ``flip``, the share that is mirrored, ``noise`` in grey levels."""
    devices: Positive = 1
    """That the model is trained on, each with its share of every batch."""
    deterministic: bool = False
    """Equal trainings give equal models on a GPU too, where that is slower; on a CPU they do."""
    precision: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Of what layers compute in training; weights, and the model that is stored, are float32. auto: bfloat16, or else
    float16, where the device has instructions for it and they are faster."""
    jit_compile: bool | Literal["auto"] = "auto"
    """By XLA, or torch.compile. This and the next two, like an ``auto`` precision, follow from a rule or, before a long
    training, from a measurement; see ``policy.py``."""
    steps_per_execution: Positive | Literal["auto"] = "auto"
    """That the device takes before Python looks again."""
    threads: Positive | Literal["auto"] = "auto"
    """Of the CPU that one operation is divided into."""
    tokens: Literal["words", "characters", "subwords"] = "words"
    """What texts are divided into; see ``vocabulary.py``."""
    vocabulary: Positive | None = None
    """The most frequent words or characters that are known; by default all of the training split."""
    min_count: Positive = 1
    """How often a word or character has to occur there."""
    case: bool = False
    """Words and characters keep it: "The" is another word than "the". Subwords and translations always do."""
    length: Positive | None = None
    """Tokens of a text that are read; by default as many as the longest of the training split has, and at most 4096."""
    word_vectors: Path | None = None
    """File of vectors that the words begin with; DVC does not watch it."""
    seed: Seed = 0
    """Of the first weights, the order of examples and dropout."""

    @classmethod
    def completed(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the keys of an entry with those that its architecture's file proposes."""
        return signatures.preset(given.get("architecture")) | given

    def check(self, where: str, name: str) -> None:
        """Checks the architecture and its sizes."""
        signatures.check_sizes(where, self.architecture, self.sizes)

    def check_kind(self, where: str, kind: str) -> None:
        """Raises ConfigurationError where the architecture is for other data, or a key has no effect on this.

        Args:
            where: begins the message.
            kind: of the data set.
        """
        if (own := signatures.kind(self.architecture)) != kind:
            others = [name for name in signatures.architectures() if signatures.kind(name) == kind]
            raise ConfigurationError(
                f"{where}: {self.architecture} takes {own}, and {self.dataset} has {kind}. "
                f"For these: {', '.join(others)}."
            )
        for name, share in self.augmentation.items():
            if (name == "scale" and share >= 1) or (name == "flip" and share > 1):
                raise ConfigurationError(
                    f"{where}, augmentation: {name} = {share} is a share: below 1, or of flip up to 1."
                )
        unset = {key: field.default for key, field in Train.model_fields.items()} | signatures.preset(self.architecture)
        for key, why in self._idle(kind).items():
            if getattr(self, key) != unset[key]:
                raise ConfigurationError(f"{where}: {key} = {getattr(self, key)} would have no effect: {why}.")

    def _idle(self, kind: str) -> dict[str, str]:
        """Returns the keys that say nothing about such data, and why."""
        idle = {}
        if kind in ARRAYS:
            idle |= dict.fromkeys(READING, f"{kind} are not divided into tokens")
        elif self.tokens == "subwords":
            why = "augment learns the subwords, and they have case"
            idle |= dict.fromkeys(("vocabulary", "min_count", "case"), why)
        if kind != "images":
            idle["augmentation"] = "it is of pictures"
        if (kind, self.tokens) != ("text", "words"):
            idle["word_vectors"] = "they are for texts, divided into words"
        if kind == "translation":
            idle |= {"class_weights": "sentences have no classes", "case": "a translation keeps it"}
        return idle
