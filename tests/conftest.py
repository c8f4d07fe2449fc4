"""What all tests share: one thread, Ctrl-C, W&B in a folder of its own, a tiny network, a browser, and jobs."""

from __future__ import annotations

import functools
import importlib.util
import multiprocessing
import multiprocessing.forkserver
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from torch import nn

    from tests.runs import Compose

settings.register_profile("suite", max_examples=30)  # of tests that do not say how many they need
settings.load_profile("suite")


def _keep_off_the_defect_of_onednn() -> None:
    """Keep oneDNN off AVX2's kernels where it would take them: they are wrong for narrow layers.

    Tests train networks as narrow as smaller ones are, which alone are kept off the defect (see
    `lt_lightning.execution.shrink_channels`). oneDNN reads the variable once, when any import first asks it for
    something: so it is set before any of them.
    """
    processor = Path("/proc/cpuinfo")
    flags = set(processor.read_text(encoding="utf-8", errors="replace").split()) if processor.is_file() else set()
    if "avx2" in flags and "avx512f" not in flags:
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX")


_keep_off_the_defect_of_onednn()

# PyTorch and the package are imported where they are needed: the process that hands out the tests needs neither.

# They need the fork server, which takes long to start: all of them are for one worker.
FORKING = (
    "tests/experiment/processes/",
    "tests/experiment/run/test_resume.py",
    "tests/experiment/run/test_scheduler.py",
    "tests/experiment/run/test_setup.py",
    "tests/experiment/sweep/test_sweep.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out a file at a time, and the files that need the fork server together, where `--dist loadfile` asks."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return FORKING[0] if nodeid.startswith(FORKING) else str(super()._split_scope(nodeid))

    return Scheduling(config, log)


@pytest.fixture(autouse=True, scope="session")
def _wandb_keeps_to_itself(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        for part in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR"):
            patch.setenv(f"WANDB_{part}", str(tmp_path_factory.mktemp("wandb")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _determinism_is_a_tests_own() -> Iterator[None]:
    """A Trainer with `deterministic=true`, also of a module's fixture, sets it for the whole process."""
    import torch

    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def _options_are_registered() -> None:
    """As a command does before it composes."""
    from lt_lightning.experiment.config import options

    options.register()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests measure is remembered for nobody else; what they compile is used again."""
    from lt_lightning.storage.files import cache_folder

    cache = tmp_path_factory.mktemp("cache")
    for name in ("kernels", "signatures"):
        (cache_folder() / name).mkdir(parents=True, exist_ok=True)
        (cache / name).symlink_to(cache_folder() / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LT_LIGHTNING_CACHE", str(cache))
        yield


@pytest.fixture(autouse=True, scope="session")
def _packages_are_read_once() -> Iterator[None]:
    """Lightning reads the entry points of all that is installed for each trainer: 90 % of the time to make one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_fabric.utilities.registry.entry_points", functools.cache(entry_points))
        yield


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_heard() -> None:
    """Tests started in the background of a shell are told to ignore it, and so would be what they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def forkserver() -> ForkServerContext:
    """Starts processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    multiprocessing.forkserver.ensure_running()  # from here: a test may work in another folder
    return context


@pytest.fixture
def conv_net() -> Callable[[], nn.Module]:
    """Makes a network of two convolutions and a linear layer for 1 x 6 x 6 images, always with the same values."""
    import torch
    from torch import nn

    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
        )  # fmt: skip

    return make


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[Compose]:
    """Composes a script's configuration, with overrides, writing under `tmp_path / "runs"`."""
    from tests.runs import composing

    with composing(tmp_path / "runs") as composed:
        yield composed


@pytest.fixture(scope="session")
def script() -> Iterator[ModuleType]:
    """`scripts/run.py`, to be run in this process by its `run`, with `sys.argv` as on the command line."""
    path = Path(__file__).resolve().parents[1] / "scripts" / "run.py"
    spec = importlib.util.spec_from_file_location("run_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_script"] = module  # Hydra looks for it
    spec.loader.exec_module(module)
    yield module
    del sys.modules["run_script"]


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(
        (path for name in ("chromium", "google-chrome", "chromium-browser") if (path := shutil.which(name))), None
    )
    if program is None:
        pytest.skip("there is no Chromium to open pages with")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"], timeout=120_000)
        yield browser
        browser.close()
