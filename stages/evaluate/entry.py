"""What ``evaluate`` reads of an entry of ``train:``, which has no section of its own in params.yaml."""

from convoy.schema import Entry


class Evaluate(Entry):
    """The data set on which a model is scored."""

    dataset: str
    """That of the model's entry of train."""
