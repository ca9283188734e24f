"""No tensor of the wrong device: whole runs on a pretended GPU, which a machine without one can have."""

import pytest
import torch

from distillzoo.core.cache.build import build
from distillzoo.core.config import resolve
from distillzoo.core.distill import distil
from distillzoo.core.progress import Reporter
from distillzoo.core.rundir import RunDirectory
from distillzoo.core.world import World
from tests.pretended_gpu import PretendedGPU, install, place

METRICS = ["rouge-l", "forward-kl", "reverse-kl", "entropy", "nucleus-mass", "ex-acc-err", "calibration"]


@pytest.fixture
def flags(tiny, monkeypatch):
    install(monkeypatch)
    return {
        "teacher": {"model": str(tiny.teacher)}, "student": {"model": str(tiny.student)}, "device": "cuda",
        "data": {"train": str(tiny.data), "max_length": 20, "max_prompt_length": 8},
        "train": {"max_steps": 2, "batch_size": 4, "device_batch_size": 2, "log_every": 1},
        "evaluate": {"limit": 4, "metrics": METRICS},
    }  # fmt: skip


def test_it_notes_what_a_gpu_would_refuse():
    numbers = torch.arange(4)
    with PretendedGPU() as gpu:
        there = torch.ones(4, device="cuda")
        here = torch.ones(4)
        assert (there.device.type, here.device.type, (there * 2).device.type) == ("cuda", "cpu", "cuda")
        assert (there.cpu().device.type, here.to(there.device).is_cuda) == ("cpu", True)
        there[torch.tensor([1, 2])] * torch.tensor(3.0)
        assert not gpu.mixed, "indices and numbers in main memory are taken"
        there.gather(0, torch.tensor([0, 1]))
        there + here
        torch.cat([there, here])
        torch.where(there > 0, here, 0.0)
        there.numpy()
    assert sum(gpu.mixed.values()) == 5
    assert place(numbers) is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
@pytest.mark.parametrize(
    ("algo", "sets"),
    [
        ("bd-iql", ()),
        ("kd", ("subset.name=sampled", "objective.tail=weighted")),
        ("bd-plus", ()),
        ("bd-soft-q", ("objective.target=network",)),
        ("kd", ("dtype=float32",)),
        ("gkd", ()),
        ("minillm", ()),
        ("distillm", ("curve.every=1",)),
    ],
)
def test_no_run_mixes_devices(algo, sets, flags, registry, tmp_path):
    config = resolve(registry, algo=algo, flags=flags, sets=sets)
    with PretendedGPU() as gpu:
        found = distil(config, registry, RunDirectory.create(tmp_path / "run"), Reporter())
    assert found is not None
    assert found["device"] == "pretended GPU"
    assert not gpu.mixed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_no_cache_mixes_devices(flags, registry, tmp_path):
    with PretendedGPU() as gpu:
        world = World(resolve(registry, algo="bd-iql", flags=flags), registry, Reporter())
        world.load()
        build(world, tmp_path / "cache")
        config = resolve(registry, algo="bd-iql", flags={**flags, "teacher_cache": str(tmp_path / "cache")})
        distil(config, registry, RunDirectory.create(tmp_path / "run"), Reporter())
    assert not gpu.mixed
