import numpy as np
import pytest

from stages.errors import InputRefusedError, IntegrityError
from stages.shards import INDEX, Shards, ShardWriter, write_shards


@pytest.fixture
def example(tmp_path):
    """100 examples in 7 shards, written in uneven blocks."""
    x = np.random.default_rng(0).integers(0, 256, (100, 4, 3, 1), np.uint8)
    y = np.arange(100)
    parts = np.split(np.arange(100), [1, 20, 21, 80])
    write_shards(tmp_path / "s", ({"x": x[part], "y": y[part]} for part in parts), shard_bytes=15 * (12 + 8))
    return tmp_path / "s", x, y


def test_reads_any_rows_in_any_order(example):
    folder, x, y = example
    shards = Shards(folder)
    rows = np.random.default_rng(1).integers(-100, 100, 500)
    assert len(shards) == 100
    assert shards.shape("x") == (4, 3, 1)
    assert len(list(folder.glob("x-*.npy"))) == 7
    np.testing.assert_array_equal(shards[rows]["x"], x[rows])
    np.testing.assert_array_equal(shards[rows]["y"], y[rows])
    np.testing.assert_array_equal(shards[10:50:3]["y"], y[10:50:3])
    np.testing.assert_array_equal(np.concatenate([block["x"] for block in shards.blocks(33)]), x)
    np.testing.assert_array_equal(shards.column("y"), y)
    assert shards[-1]["y"] == 99
    assert shards[[]]["x"].shape == (0, 4, 3, 1)


@pytest.mark.parametrize("row", [100, -101])
def test_refuses_rows_that_do_not_exist(example, row):
    with pytest.raises(IndexError, match="100 rows"):
        Shards(example[0])[[row]]


def test_equal_content_gives_equal_bytes(example, tmp_path):
    folder, x, y = example
    write_shards(tmp_path / "again", [{"x": x, "y": y}], shard_bytes=15 * (12 + 8))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()
    }


def test_a_flipped_bit_or_a_cut_in_any_file_is_found(example):
    folder, *_ = example
    for path in sorted(folder.glob("*.npy")):
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            with pytest.raises(IntegrityError, match=path.name):
                Shards(folder)
        path.write_bytes(whole[:-1])
        with pytest.raises(IntegrityError, match=path.name):
            Shards(folder, verify=False)
        path.write_bytes(whole)
    Shards(folder)


def test_a_folder_whose_writer_did_not_finish_is_refused(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "s") as writer:
        writer.append({"x": np.zeros((5, 2))})
        raise RuntimeError
    with pytest.raises(InputRefusedError, match="index.json is missing: run the stage"):
        Shards(tmp_path / "s")


def test_a_damaged_index_and_a_missing_file_are_named(example):
    folder, *_ = example
    (folder / "x-00003.npy").unlink()
    with pytest.raises(IntegrityError, match="x-00003.npy is missing"):
        Shards(folder)
    (folder / INDEX).write_text("{")
    with pytest.raises(IntegrityError, match="index.json is damaged"):
        Shards(folder)


def test_a_block_of_another_kind_is_refused(tmp_path):
    with ShardWriter(tmp_path / "s") as writer:
        writer.append({"x": np.zeros((5, 2), np.uint8)})
        for block in ({"x": np.zeros((5, 3), np.uint8)}, {"x": np.zeros((5, 2))}, {"y": np.zeros((5, 2), np.uint8)}):
            with pytest.raises(ValueError, match="among"):
                writer.append(block)


def test_objects_are_never_unpickled(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        write_shards(tmp_path / "s", [{"x": np.array([{}, []], dtype=object)}])
