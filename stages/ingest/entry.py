"""What an entry of ``ingest:`` in params.yaml says."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from convoy import kinds
from convoy.errors import ConfigurationError
from convoy.schema import Entry, Positive, Share

if TYPE_CHECKING:
    KindName = str  # a type checker cannot follow names that are found at run time
else:
    KindName = Literal[kinds.NAMES]
Role = Literal["text", "label", "split", "image", "path", "source", "target"]


class Ingest(Entry):
    """How raw data is read, checked and split."""

    kind: KindName
    """The reader, a file of ``finders/``. Arrays: images ``image`` uint8 (height, width, channels); volumes ``volume``
    uint8 (depth, height, width, channels); text ``text``; translation ``source`` and ``target``."""
    size: tuple[Positive, ...] | None = None
    """(height, width) of the stored pictures, in pixels; (depth, height, width) of volumes."""
    mode: Literal["grey", "colour"] | None = None
    """grey has one channel, colour has three; for pictures and volumes."""
    fit: Literal["stretch", "pad", "crop"] = "stretch"
    """How a picture comes to ``size``: ``stretch`` changes its proportions, ``pad`` adds black margins, ``crop`` cuts
    the longer side, centred."""
    columns: dict[Role, str | int | list[str | int]] = Field({})
    """Role -> column of a table (its name, its number from 0, or several to be joined) or ending of a parallel file,
    where the names are not the usual ones."""
    files: dict[Literal["train", "val", "test"], str] = Field({})
    """Split -> glob pattern of the raw files that belong to it, where their names do not say it."""
    encoding: str | None = None
    """Of text files; by default detected for each, and noted in about.json."""
    near_duplicates: bool = True
    """Look for nearly equal examples too, and keep them in one split."""
    val: Share = 0.15
    """Share of the examples for validation; see ``split_of``."""
    test: Share = 0.2
    """Share of the examples for the test, likewise."""
    max_bad: Share = 0.01
    """Largest share of unreadable examples; above it the data set is refused."""

    def check(self, where: str, name: str) -> None:
        """Checks that the kind and its size go together, and that the shares leave something to train on."""
        axes, got = kinds.get(self.kind).axes, f"got size = {self.size}, mode = {self.mode}."
        if axes and (self.size is None or len(self.size) != axes or self.mode is None):
            names = "height, width" if axes == 2 else "depth, height, width"
            raise ConfigurationError(
                f"{where}: kind {self.kind} needs size: [{names}], in pixels, and mode: grey or colour; {got}"
            )
        if not axes and (self.size is not None or self.mode is not None):
            raise ConfigurationError(f"{where}: kind {self.kind} has no size and no mode; {got}")
        if self.val + self.test >= 1:
            raise ConfigurationError(f"{where}: val {self.val} + test {self.test} leave nothing to train on.")
