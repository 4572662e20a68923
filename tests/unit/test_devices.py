"""Slots: who gets which, and that nobody has to clean up."""

import threading
import time

import pytest
from nvml import FakeGpu, install

from convoy.errors import ConfigurationError
from flows.run import devices
from flows.run.devices import Slot, Slots


@pytest.fixture
def nvidia(monkeypatch):
    """A machine with three GPUs."""
    return install(monkeypatch, *[FakeGpu(f"GPU-{letter * 3}") for letter in "abc"])


@pytest.fixture
def slots(tmp_path):
    """A function that makes slots as another process would see them."""
    return lambda count=2, kind="gpu": Slots([Slot(f"{kind}:{n}", f"{kind}-{n}") for n in range(count)], tmp_path / "s")


def take(slots, count=1, **options):
    return slots.lease(count, threading.Event(), lambda: None, **options)


def names(found):
    return [slot.name for slot in found]


def test_a_machine_with_gpus_has_one_slot_for_each(nvidia):
    assert names(devices.find()) == ["gpu:0", "gpu:1", "gpu:2"]
    assert names(devices.find(2)) == ["gpu:0", "gpu:1"]


@pytest.mark.parametrize(
    ("visible", "found"),
    [("2,0", ["gpu:2", "gpu:0"]), ("GPU-bbb", ["gpu:1"]), ("", ["cpu:0"]), ("-1", ["cpu:0"])],
)
def test_cuda_visible_devices_leaves_some(nvidia, monkeypatch, visible, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert names(devices.find()) == found


def test_an_instance_of_a_divided_gpu_is_a_slot_of_its_own(monkeypatch, tmp_path):
    install(monkeypatch, FakeGpu("GPU-aaa", instances=[FakeGpu("MIG-x"), FakeGpu("MIG-y")]), FakeGpu("GPU-bbb"))
    found = devices.find()
    assert names(found) == ["gpu:MIG-x", "gpu:MIG-y", "gpu:1"]
    with take(Slots(found, tmp_path), 2) as lease:
        assert lease.environment["CUDA_VISIBLE_DEVICES"] == "MIG-x,MIG-y"


def test_a_driver_without_a_device_means_the_cpu(monkeypatch):
    install(monkeypatch)
    assert names(devices.find()) == ["cpu:0"]
    assert names(devices.find(3)) == ["cpu:0", "cpu:1", "cpu:2"]


@pytest.mark.parametrize("count", [0, -1])
def test_fewer_than_one_slot_is_refused(count):
    with pytest.raises(ConfigurationError, match="at least one"):
        devices.find(count)


def test_a_gpu_is_leased_by_its_number_on_the_bus(slots):
    with take(slots()) as first, take(slots()) as second:
        assert [first.name, second.name] == ["gpu:0", "gpu:1"]
        assert second.environment == {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    with take(slots(), 2) as both:
        assert both.name == "gpu:0,1"
        assert both.environment["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_slots_of_the_cpu_share_its_threads(slots, monkeypatch):
    monkeypatch.setattr(devices, "cores", lambda: 8)
    with take(slots(2, "cpu")) as taken:
        assert set(taken.environment.values()) == {"4"}
    with take(slots(2, "cpu"), 2) as taken:
        assert set(taken.environment.values()) == {"8"}
    with take(slots(1, "cpu")) as taken:
        assert taken.environment == {}  # as without a flow


def test_nobody_gets_a_slot_that_another_has(slots):
    at_once, most, lock = [0], [0], threading.Lock()

    def work():
        with take(slots()):
            with lock:
                at_once[0] += 1
                most[0] = max(most[0], at_once[0])
            time.sleep(0.05)
            with lock:
                at_once[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [2]


def test_who_waits_is_told_and_can_give_up(slots):
    told, ended = [], threading.Event()
    with take(slots(1)):
        threading.Timer(0.3, ended.set).start()
        with slots(1).lease(1, ended, lambda: told.append(1)) as taken:
            assert taken is None
    assert told == [1]


def test_who_takes_longest_goes_first_and_nobody_overtakes_who_wants_two(slots):
    shared, order, threads = slots(2), [], []

    def work(name, count, seconds):
        with take(shared, count, seconds=seconds):
            order.append(name)
            time.sleep(0.02)

    with take(shared), take(shared):
        for name, count, seconds in (("short", 1, 1), ("long", 1, 9), ("both", 2, 5)):
            threads.append(threading.Thread(target=work, args=(name, count, seconds)))
            threads[-1].start()
        time.sleep(0.3)
    for thread in threads:
        thread.join()
    assert order == ["long", "both", "short"]


def test_more_devices_than_there_are_are_refused(slots):
    wanted = take(slots(), 3)
    with pytest.raises(ConfigurationError, match="devices: 3 are asked for; there are 2: gpu:0, gpu:1"), wanted:
        pass


def test_the_cpu_gives_what_it_has(tmp_path):
    slots = Slots(devices.find(2), tmp_path)
    with slots.lease(4, threading.Event(), lambda: None) as taken:
        assert taken.name == "cpu:0,1"
