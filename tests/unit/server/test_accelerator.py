"""Taking a GPU, with one that is not there: which, whether its driver will do, and what stays on the CPU."""

import pytest
import torch
from pierhead_server import accelerator
from pierhead_server.accelerator import check_driver, copy_to, enter_device, take_device
from pierhead_server.errors import DriverTooOldError

META = torch.device("meta")


@pytest.fixture
def entered(monkeypatch):
    """The devices that were made the current one, of two GPUs."""
    entered = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", entered.append)
    monkeypatch.setattr(accelerator, "read_driver_version", lambda: 99000)
    return entered


@pytest.mark.parametrize(("place", "index"), [(0, 0), (1, 1), (2, 0), (5, 1)])
def test_more_workers_than_gpus_share_them(entered, place, index):
    device = take_device("cuda", place)
    assert device == torch.device("cuda", index)
    assert entered == [device]


def test_each_thread_enters_its_gpu(entered):
    enter_device(torch.device("cuda", 1))
    enter_device(META)
    assert entered == [torch.device("cuda", 1)]


def test_gpu_that_torch_does_not_find_is_an_error(entered, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(RuntimeError, match="torch finds no GPU"):
        take_device("cuda", 0)


def test_old_driver_is_told_before_torch_trips_over_it(entered, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(accelerator, "read_driver_version", lambda: 12040)
    with pytest.raises(DriverTooOldError, match=r"knows CUDA 12\.4, and this server needs CUDA 13: "):
        take_device("cuda", 0)
    assert entered == []


@pytest.mark.parametrize(
    ("cuda", "driver"), [("13.2", 13020), ("13.2", 13000), ("12.8", 13000), (None, 11000), ("13.2", None)]
)
def test_other_drivers_will_do(cuda, driver):
    check_driver(cuda, driver)


def test_machine_without_a_driver_has_none(monkeypatch):
    monkeypatch.setattr(accelerator, "_LIBCUDA", "libnowhere.so.1")
    assert accelerator.read_driver_version() is None


class Tied(torch.nn.Module):
    """Two layers of one weight, and a buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        return self.second(self.first(x)) * self.scale


def test_copy_leaves_the_model_where_it_is():
    module = Tied()
    before = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    copied = copy_to(module, META)
    assert copied(torch.zeros(2, 3, device=META)).device == META
    assert {name: tensor.data_ptr() for name, tensor in module.state_dict().items()} == before
    assert module(torch.zeros(2, 3)).device.type == "cpu"


def test_copy_shares_the_weights_until_they_are_elsewhere():
    module = Tied()
    copied = copy_to(module, torch.device("cpu"))
    assert copied.first.weight.data_ptr() == module.first.weight.data_ptr()
    assert copied.first.weight is not module.first.weight
    assert copied.first.weight is copied.second.weight
