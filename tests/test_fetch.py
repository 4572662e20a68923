import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from stages.errors import ConfigurationError, InputRefusedError
from stages.fetch.fetch import fetch


def test_digits_are_the_1797_pictures_of_scikit_learn_in_class_folders(workspace):
    fetch("digits", sample="digits")
    files = sorted((workspace / "data/raw/digits").rglob("*.png"))
    pictures, labels = load_digits(return_X_y=True)
    assert len(files) == 1797
    for file in files[::97]:
        number = int(file.stem)
        picture = np.asarray(Image.open(file))
        assert file.parent.name == str(labels[number])
        np.testing.assert_array_equal(np.rint(picture / 255 * 16), pictures[number].reshape(8, 8))


def test_a_local_folder_is_copied_and_replaces_what_was_there(workspace):
    source = workspace / "elsewhere"
    (source / "cat").mkdir(parents=True)
    (source / "cat/1.png").write_bytes(b"1")
    (workspace / "data/raw/pets/dog").mkdir(parents=True)
    fetch("pets", path=source)
    assert [p.name for p in sorted((workspace / "data/raw/pets").rglob("*"))] == ["cat", "1.png"]


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ({}, ConfigurationError, "one of sample .digits. or path"),
        ({"sample": "digits", "path": "x"}, ConfigurationError, "one of sample"),
        ({"sample": "digit"}, ConfigurationError, "unknown sample 'digit'. Samples: digits"),
        ({"path": "nowhere"}, InputRefusedError, "nowhere.* does not exist"),
        ({"path": "data"}, ConfigurationError, "lie in each other"),
        ({"path": "data/raw/pets"}, ConfigurationError, "needs no fetch entry but `dvc add data/raw/pets`"),
        ({"path": "data/raw/pets/photos"}, ConfigurationError, "lie in each other"),
    ],
)
def test_refuses_what_it_cannot_fetch_and_leaves_the_raw_data_alone(workspace, source, error, message):
    kept = workspace / "data/raw/pets/cat.png"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"1")
    with pytest.raises(error, match=message):
        fetch("pets", **{key: workspace / value if key == "path" else value for key, value in source.items()})
    assert kept.exists()
