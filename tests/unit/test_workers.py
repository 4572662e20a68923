import os
import shutil
import time

import dask.config
import pytest
from distributed import LocalCluster

from convoy.errors import ServiceError
from convoy.machine import workers
from stages.augment.augment import augment
from stages.augment.entry import Augment
from stages.ingest import reading
from stages.ingest.entry import Ingest
from stages.ingest.ingest import ingest

pytestmark = pytest.mark.alone


def square(number, add):
    time.sleep(0.01 * (number % 3))  # later ones overtake earlier ones
    return number * number + add


def process(_):
    return os.getpid()


@pytest.mark.parametrize("small", [True, False])
def test_results_come_in_order_from_threads_and_processes(small):
    with workers.executor(small=small) as pool:
        assert list(workers.map_ahead(pool, square, range(30), 1)) == [n * n + 1 for n in range(30)]
        pids = set(workers.map_ahead(pool, process, range(30)))
    assert (pids == {os.getpid()}) == small


def test_few_blocks_are_taken_ahead():
    taken = []

    def blocks():
        for number in range(1000):
            taken.append(number)
            yield number

    with workers.executor(small=True) as pool:
        results = workers.map_ahead(pool, square, blocks(), 0)
        next(results)
        assert len(taken) <= workers.AHEAD * workers.cores() + 1


def test_a_dask_address_moves_the_work_to_its_workers():
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = dask.config.set({"scheduler-address": cluster.scheduler_address})
        with address, workers.executor(small=True) as pool:
            results = list(workers.map_ahead(pool, square, range(20), 1))
            pids = set(workers.map_ahead(pool, process, range(20)))
    assert results == [n * n + 1 for n in range(20)]
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_a_scheduler_that_does_not_answer_is_named():
    nobody = {"scheduler-address": "tcp://127.0.0.1:9", "distributed.comm.timeouts.connect": "1s"}
    with dask.config.set(nobody), pytest.raises(ServiceError, match="127.0.0.1:9"), workers.executor():
        pass


def test_processes_and_a_cluster_give_the_bytes_of_threads(pictures, monkeypatch):
    data = pictures.parents[1]

    def run():
        ingest("bars", Ingest(kind="images", size=(12, 12), mode="grey"))
        augment("bars", Augment(copies=2, seed=1, shift=2, elastic=1, noise=5))
        files = [path for stage in ("ingest", "augment") for path in (data / stage / "bars").rglob("*.*")]
        content = {str(path.relative_to(data)): path.read_bytes() for path in files}
        for stage in ("ingest", "augment"):
            shutil.rmtree(data / stage)
        return content

    threads = run()
    monkeypatch.setattr(reading, "BLOCK", 7)
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, dask.config.set({"scheduler-address": cluster.scheduler_address}):
        assert run() == threads
    monkeypatch.setattr(reading, "SMALL", 0)
    monkeypatch.setattr("stages.augment.augment.SMALL", 0)
    assert run() == threads
