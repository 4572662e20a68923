"""What an entry of ``register:`` in params.yaml says."""

from convoy.schema import Above, Amount, Entry, Part


class Register(Entry):
    """What a model has to do to become champion of its data set."""

    min_gain: Amount = 0.0
    """By which a challenger has to exceed the champion, in the main metric: a share for accuracy, points of 100 for
    BLEU."""
    alpha: Part = 0.05
    """Largest probability of promoting a challenger that was only lucky."""
    max_slice_loss: Amount = 0.1
    """By which it may be worse on a class, a size or a source of the test examples, in accuracy; of sentence pairs in
    chrF of 1. A loss that chance explains does not count."""
    max_latency: Above | None = None
    """Of a champion, in milliseconds: within it 95 % of single raw examples have to be answered, on the machine that
    registers. None of the limits is set by default."""
    max_size: Above | None = None
    """Of a champion's model.keras, in megabytes."""
    max_ece: Above | None = None
    """Of a champion's expected calibration error on the test split, as served."""
