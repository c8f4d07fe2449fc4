"""Wrong input to the main job: one line that names what is wrong, an exit code, and nothing lost that was finished."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

from lt_lightning.results.records import find_results
from lt_lightning.storage import files
from lt_lightning.tickets import ticket
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.classifier import ImageClassifier
from tests.cases import slow_but
from tests.runs import REFILL, SMALL, composing

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "run.py"
SEARCH = (*SMALL, "structure=[]", "threads=1", "report=false")
Run = Callable[..., str]


def by_hydra(command: Callable[[], None], task: Callable[[DictConfig], Any]) -> None:
    """Do the task with what the command line composes, without Hydra's log."""
    root, *overrides = sys.argv[1:]
    with composing(Path(root.removeprefix("paths.root="))) as composed:
        task(composed(*overrides, name=command.__name__))


@pytest.fixture
def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the script in this process, and returns the line that it ended with; empty if it succeeded."""

    def run(root: Path, *overrides: str) -> str:
        with monkeypatch.context() as patch:
            patch.setattr("lt_lightning.cli._by_hydra", by_hydra)
            patch.setattr(sys, "argv", ["run.py", f"paths.root={root}", *SEARCH, *overrides])
            patch.setenv("HYDRA_FULL_ERROR", "")  # set by the script
            code: Any = ""
            try:
                script.run()
            except SystemExit as end:
                code = end.code
        printed = capsys.readouterr()
        # Python writes a text to stderr and exits with 1; the command writes what is impossible, and exits with 2.
        line = printed.err.splitlines()[-1] if code == 2 else code
        assert isinstance(line, str)
        assert "Traceback" not in printed.out + printed.err
        assert "Error executing job" not in printed.err
        assert "\n" not in line
        assert not line or line.startswith("error: ")
        return line

    return run


def contents(root: Path) -> dict[str, str]:
    """Digest of every file that belongs to a result."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix in (".safetensors", ".json", ".csv") and "jobs" not in path.parts
    }


@pytest.fixture(scope="module")
def finished(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A root with the finished results of one search, and what is in them."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["run.py", f"paths.root={root}", *SEARCH])
        patch.setenv("HYDRA_FULL_ERROR", "")  # set by the script
        script.run()
    assert len(find_results(root)) == 2
    return root, contents(root)


# Configurations: overrides, and what the line must name; where that is not said, what is overridden

CONFIGS: dict[str, list[str]] = {
    # names that there are not
    "pruning.ratee=0.3": ["pruning.ratee", "rate,", "mean rate?"],
    "nothing=1": ["'nothing'", "seed"],
    "+nothing=1": ["nothing=1", "seed"],
    "+pruning.speed=2": ["pruning.speed=2", "LotteryTicketPruning", "rate"],
    "+trainer.max_epoch=3": ["trainer.max_epoch=3", "Trainer", "mean max_epochs?"],
    "classifier.optimiser=adamw": ["classifier.optimiser", "learning_rate"],
    "classifier.optimizer=adamm": ["classifier.optimizer='adamm'", "sgd, adamw", "mean adamw?"],
    "data=cifarr": ["data/cifarr", "cifar100", "digits", "mean cifar10?"],
    "model=resnet9000": ["model/resnet9000", "resnet8"],
    "structure=[refil]": ["structure/refil", "regroup_channels", "mean refill?"],
    "schedule=linear": ["schedule/linear", "cosine"],
    "logger=neptune": ["logger/neptune", "csv, tensorboard, wandb"],
    "seed=[1": ["seed=[1"],
    # the job's own
    "seed=-1": [],
    "seed=one": ["seed='one'"],
    "retrain_rounds=2": ["retrain_rounds=2"],
    "retrain_rounds=[2]": ["retrain_rounds", "pruning.rounds=1"],
    "threads=0": [],
    "+transfer.form=x": ["transfer.form=x", "from"],
    "execution=fast": ["execution='fast'", "shrunk, masked"],
    "measure={batch_size: 0, samples: 7, slot: 0.03}": ["measure.batch_size=0"],
    "checkpoint.seconds=x": ["checkpoint.seconds='x'"],
    "checkpoint.share=0": ["checkpoint.share=0"],
    "labels.model=../../x": ["labels.model='../../x'"],
    "plan=maybe": ["plan='maybe'"],
    # pruning
    "pruning.rounds=-1": [],
    "pruning.rounds=1.5": [],
    "pruning.rounds=null": [],
    "pruning.rounds=200": ["rounds=200", "rate=0.2"],
    "pruning.rate=0": [],
    "pruning.rate=1": [],
    "pruning.rate=nan": [],
    "pruning.rate=much": ["pruning.rate='much'"],
    "pruning.rewind=soon": ["pruning.rewind='soon'", "'8ep'", "'500it'"],
    "pruning.rewind=2ep": [],
    "pruning.rewind=999it": [],
    "pruning.scope=all": ["pruning.scope='all'", "global, layer, erk, imp"],
    "pruning=agp pruning.scope=imp": ["pruning.scope='imp'", "sparsifier=Gradual"],
    "pruning=random structure=[refill] structure.refill.extra=2": ["structure.refill.extra=2"],
    "pruning=synflow pruning.scope=imp": ["pruning.scope='imp'", "criterion=SynFlow"],
    "pruning.mode=back": ["pruning.mode='back'", "weights, learning_rate, none"],
    "pruning.on_collapse=ignore": ["pruning.on_collapse='ignore'", "warn, stop"],
    "pruning.exempt=[nowhere]": ["pruning.exempt", "'nowhere'", "stem.conv"],
    "pruning.exempt=stem": ["pruning.exempt='stem'"],
    "pruning.exempt=['*']": [],
    "pruning.criterion=magnitude": ["pruning.criterion='magnitude'", "_target_", "Criterion"],
    "pruning.criterion._target_=lt_lightning.Magic": ["pruning.criterion._target_=lt_lightning.Magic"],
    "pruning.next_round_from=refill": ["pruning.next_round_from='refill'", "unstructured"],
    "structure=[refill,regroup] pruning.next_round_from=regroup": ["pruning.next_round_from='regroup'"],
    "pruning.monitor=val/beauty": ["monitor='val/beauty'", "val/accuracy"],
    # training
    "trainer.max_epochs=0": [],
    "trainer.max_epochs=null": [],
    **{
        f"+trainer.{key}": [f"trainer.{key}"]
        for key in (
            "callbacks=[]",
            "logger=true",
            "min_epochs=3",
            "min_steps=3",
            "max_steps=5",
            "fast_dev_run=true",
            "enable_progress_bar=true",
            "enable_model_summary=false",
            "enable_checkpointing=true",
            "use_distributed_sampler=true",
        )
    },
    "+callbacks.mine._target_=lt_lightning.Magic": ["callbacks.mine._target_=lt_lightning.Magic"],
    "+callbacks.mine._target_=lt_lightning.Refill": ["callbacks.mine", "Refill"],
    "trainer.precision=12": ["trainer.precision=12", "bf16-mixed"],
    "trainer.precision=16-mixed": ["trainer.precision='16-mixed'", "bf16-mixed"],
    "trainer.accelerator=tpuu": ["tpuu", "cpu"],
    "trainer.gradient_clip_val=-1": [],
    "+trainer.accumulate_grad_batches=0": ["trainer.accumulate_grad_batches=0"],
    "classifier.compile=graphs": ["classifier.compile='graphs'", "'cpu'"],
    "classifier.compile=fast": ["classifier.compile='fast'"],
    "classifier.learning_rate=-1": [],
    "classifier.momentum=1": [],
    "classifier.schedule.peak=0": [],
    # data and network
    "dataset.classes=7": ["dataset.classes=7", "10"],
    "data.batch_size=0": [],
    "trainer=ddp_sim data.batch_size=63": ["data.batch_size=63", "2"],
    "data.batch_size=5000": ["data.batch_size=5000", "377"],
    "data.validation=99999": ["data.validation=99999", "1436"],
    "data.limit=0": [],
    "data.augment=null": ["data.augment=null", "Augment"],
    "model.depth=9": [],
    "model.width=wide": ["model.width='wide'"],
    "model.classes=5": ["classes=10", "(64, 5)"],
    "model._target_=torch.nn.Identity": ["Identity"],
    # structures
    "structure=[refill] structure.refill.extra=2": ["structure.refill.extra=2"],
    "structure=[refill] structure.refill.coupling=loose": ["structure.refill.coupling='loose'", "stream, inner"],
    "structure=[refill] structure.refill.score=saliency": ["structure.refill", "pruning.gradient_batches"],
    "structure=[regroup] structure.regroup.group_size=0": ["structure.regroup.group_size=0"],
    "structure=[regroup] structure.regroup.passes=0": ["structure.regroup.passes=0"],
    "structure=plus_paper structure.plus_paper.extra=2": ["error: structure.plus_paper.extra=2"],
    "structure=regroup_channels structure.regroup_channels.group_size=0": [
        "error: structure.regroup_channels.group_size=0"
    ],
    "structure=nm structure.nm.m=7": ["error: structure.nm.m=7"],
}


# Of every kind of mistake one or two, and of every part of the job.
QUICK_CONFIGS = (
    "pruning.ratee=0.3", "+nothing=1", "+pruning.speed=2", "+trainer.max_epoch=3", "data=cifarr", "seed=[1",
    "classifier.optimizer=adamm", "seed=one", "retrain_rounds=[2]", "threads=0", "execution=fast",
    "measure={batch_size: 0, samples: 7, slot: 0.03}", "pruning.rounds=200", "pruning.rate=nan", "pruning.rewind=soon",
    "pruning.exempt=[nowhere]", "pruning.criterion._target_=lt_lightning.Magic", "pruning.next_round_from=refill",
    "pruning.monitor=val/beauty", "trainer.max_epochs=null", "+trainer.max_steps=5",
    "+callbacks.mine._target_=lt_lightning.Refill", "trainer.precision=12", "trainer.accelerator=tpuu",
    "dataset.classes=7", "data.batch_size=5000", "data.augment=null", "model.depth=9", "model.classes=5",
    "model._target_=torch.nn.Identity", "structure=[refill] structure.refill.score=saliency",
    "structure=plus_paper structure.plus_paper.extra=2",
)  # fmt: skip


@pytest.mark.parametrize("overrides", slow_but(QUICK_CONFIGS, CONFIGS))
def test_wrong_configurations(overrides: str, run: Run, finished: tuple[Path, dict[str, str]]) -> None:
    root, before = finished
    # Another seed: what is finished is found again, whatever the options say that do not determine the result.
    line = run(root, "seed=1", *([overrides] if "{" in overrides else overrides.split(" ")))
    missing = [part for part in CONFIGS[overrides] or [overrides] if part not in line]
    assert not missing, line
    assert before.items() <= contents(root).items()
    assert not [name for name in contents(root).keys() - before.keys() if name.endswith(".safetensors")]


# Data files


def cifar(root: Path, size: int = 100) -> None:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for name in [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]:
        (folder / name).write_bytes(bytes(size))


def fashion(root: Path, content: bytes, compressed: bool = True) -> None:
    folder = root / "fashion-mnist"
    folder.mkdir()
    for kind in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{kind}-ubyte.gz").write_bytes(gzip.compress(content) if compressed else content)


def fashion_labels(root: Path, labels: bytes) -> None:
    images = struct.pack(">4I", 0x803, 2, 28, 28) + bytes(2 * 784)
    fashion(root, images)
    path = root / "fashion-mnist" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(struct.pack(">2I", 0x801, len(labels)) + labels))


def pictures(root: Path, folder: str, spoil: Callable[[Path], object]) -> None:
    """Two classes of four pictures, in the layout of Tiny-ImageNet or of ImageNet."""
    place, annotations = root / folder, ""
    tiny = folder.startswith("tiny")
    for name in ("n01", "n02"):
        for number in range(4):
            into = place / "train" / name / ("images" if tiny else "")
            into.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)
            Image.fromarray(noise).save(into / f"{number}.JPEG")
            held = place / "val" / ("images" if tiny else name) / f"{name}{number}.JPEG"
            held.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(into / f"{number}.JPEG", held)
            annotations += f"{name}{number}.JPEG\t{name}\n"
    if tiny:
        (place / "wnids.txt").write_text("n01\nn02\n")
        (place / "val" / "val_annotations.txt").write_text(annotations)
    spoil(place)


def cut(name: str) -> Callable[[Path], None]:
    def spoil(place: Path) -> None:
        path = place / name
        path.write_bytes(path.read_bytes()[:200])

    return spoil


TINY = "data=tiny_imagenet dataset.classes=2 data.batch_size=2 data.validation=2 data.limit=1"
IMAGENET = "data=imagenet dataset.classes=2 dataset.size=32 data.batch_size=2 data.validation=2 data.limit=1"
SPOILT_DATA: dict[str, tuple[str, Callable[[Path], None], list[str]]] = {
    "nothing there": ("data=imagenet", lambda root: None, ["data.root=", "put train, val into"]),
    "empty folder": ("data=imagenet", lambda root: (root / "imagenet").mkdir(), ["put train, val into"]),
    "cifar short": ("data=cifar10", cifar, ["data_batch_1.bin", "100 bytes", "30730000"]),
    "fashion no gzip": ("data=fashion_mnist", lambda r: fashion(r, b"x" * 99, False), ["train-images", "gzip"]),
    "fashion empty": ("data=fashion_mnist", lambda r: fashion(r, b""), ["train-images", "0 bytes"]),
    "fashion wrong magic": (
        "data=fashion_mnist",
        lambda r: fashion(r, struct.pack(">4I", 0x901, 2, 28, 28) + bytes(2 * 784)),
        ["train-images", "is no idx file", "0x00000901"],
    ),
    "fashion short": (
        "data=fashion_mnist",
        lambda r: fashion(r, struct.pack(">4I", 0x803, 60000, 28, 28) + bytes(99)),
        ["train-images", "115 bytes", "47040016"],
    ),
    "fashion fewer labels": ("data=fashion_mnist", lambda r: fashion_labels(r, b"\1"), ["labels", "1 labels for 2"]),
    "fashion wrong labels": ("data=fashion_mnist", lambda r: fashion_labels(r, b"\1\x0b"), ["label 11", "class is 9"]),
    "tiny corrupt picture": (
        TINY,
        lambda root: pictures(root, "tiny-imagenet-200", cut("train/n01/images/2.JPEG")),
        ["n01/images/2.JPEG", "is not a whole picture"],
    ),
    "tiny names no text": (
        TINY,
        lambda root: pictures(root, "tiny-imagenet-200", lambda p: (p / "wnids.txt").write_bytes(b"\xff\xfe\x00")),
        ["wnids.txt", "is no text"],
    ),
    "tiny other classes": (
        TINY.replace("classes=2", "classes=3"),
        lambda root: pictures(root, "tiny-imagenet-200", lambda place: None),
        ["data.classes=3", "names 2 classes"],
    ),
    "tiny picture missing": (
        TINY,
        lambda root: pictures(root, "tiny-imagenet-200", lambda p: (p / "val/images/n010.JPEG").unlink()),
        ["val/images/n010.JPEG"],
    ),
    "imagenet empty class": (
        IMAGENET,
        lambda root: pictures(root, "imagenet", lambda p: (p / "train/n03").mkdir()),
        ["data.classes=2", "holds 3 classes"],
    ),
    "imagenet corrupt picture": (
        f"{IMAGENET} data.workers=0",
        lambda root: pictures(root, "imagenet", lambda p: [cut(f"train/n01/{n}.JPEG")(p) for n in range(4)]),
        ["train/n01/", "is not a whole picture"],
    ),
    "imagenet corrupt picture, in a worker": (
        f"{IMAGENET} data.workers=1",
        lambda root: pictures(root, "imagenet", lambda p: [cut(f"train/n01/{n}.JPEG")(p) for n in range(4)]),
        ["train/n01/", "is not a whole picture"],
    ),
}


QUICK_DATA = ("nothing there", "cifar short", "fashion fewer labels", "imagenet corrupt picture")


@pytest.mark.parametrize("case", slow_but(QUICK_DATA, SPOILT_DATA))
def test_wrong_data_files(case: str, run: Run, tmp_path: Path) -> None:
    overrides, spoil, parts = SPOILT_DATA[case]
    spoil(tmp_path)
    line = run(tmp_path / "runs", f"paths.data={tmp_path}", *overrides.split(" "))
    missing = [part for part in parts if part not in line]
    assert not missing, line
    assert str(tmp_path) in line
    assert find_results(tmp_path / "runs") == []


# Trouble while it runs


def test_a_loss_that_is_no_number_keeps_the_last_good_round(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ImageClassifier.training_step

    def diverging(self: ImageClassifier, batch: Any, batch_idx: int) -> torch.Tensor:
        return step(self, batch, batch_idx) * (float("nan") if self.current_epoch >= 3 else 1)

    monkeypatch.setattr(ImageClassifier, "training_step", diverging)
    line = run(tmp_path, "pruning.rounds=2")
    assert "diverged" in line
    (search,) = tmp_path.glob("digits-*")
    for round_, name in ((0, "dense"), (1, "unstructured")):
        trained = Ticket.load(search / f"round_{round_:02d}" / name / "ticket").trained
        assert trained is not None
        assert all(bool(value.isfinite().all()) for value in trained.values())
    assert Ticket.load(search / "round_02" / "unstructured" / "ticket").trained is None


@pytest.mark.parametrize("kind", ["the root is a file", "its parent is a file", "not writable"])
def test_a_root_that_cannot_be_written(kind: str, run: Run, tmp_path: Path) -> None:
    if kind == "not writable":
        unwritable(run)
        return
    (tmp_path / "file").write_text("mine")
    line = run(tmp_path / ("file" if kind == "the root is a file" else "file/inner"))
    assert str(tmp_path / "file") in line
    assert (tmp_path / "file").read_text() == "mine"


def unwritable(run: Run) -> None:
    """As a user who may not write; the superuser may anywhere."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            line = run(folder / "runs")
        finally:
            os.seteuid(user)
        assert str(folder) in line
        assert "Permission denied" in line
    finally:
        folder.rmdir()


@pytest.mark.parametrize("number", slow_but([5], [1, 3, 5, 7]))
def test_a_disk_that_fills_up_at_some_write(
    number: int, run: Run, finished: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing torn gets a name, and the same command ends as if nothing had been when there is room again."""
    written = 0
    to_disk = files._to_disk

    def full(path: Path) -> None:
        nonlocal written
        written += 1
        if written >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        to_disk(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_to_disk", full)
        line = run(tmp_path)
    assert "No space left on device" in line
    assert str(tmp_path) in line
    check_whole(tmp_path)
    assert run(tmp_path) == ""
    assert len(find_results(tmp_path)) == 2
    (search,) = tmp_path.glob("digits-*")
    assert trained(search) == trained(finished[0] / search.name)


def trained(root: Path) -> dict[str, bytes]:
    """The trained values of all tickets of a search, and all that was logged."""
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("metrics.csv")}
    for path in root.rglob("ticket.safetensors"):
        for name, value in (Ticket.load(path).trained or {}).items():
            found[f"{path.relative_to(root)}/{name}"] = value.numpy().tobytes()
    return found


def check_whole(root: Path) -> None:
    """Every file with a name can be read, and none is left that has none yet."""
    for path in root.rglob("ticket.safetensors"):
        Ticket.load(path)
    for path in root.rglob("*.json"):
        files.read_json(path)
    assert list(root.rglob("*.partial")) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one ticket and not for two."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = (
        shutil.which("mount") is not None
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=260k", "tmpfs", str(place)], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("mounting a small tmpfs needs the superuser")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk(run: Run, small_disk: Path) -> None:
    line = run(small_disk)
    assert "No space left on device" in line
    assert str(small_disk) in line
    check_whole(small_disk)


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_limited_file_size_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(SCRIPT), f"paths.root={tmp_path}", *SEARCH]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "File too large" in line
    assert str(tmp_path) in line
    check_whole(tmp_path)


SPOILS = ("cut", "bit flipped", "newer schema", "another network's", "not a ticket", "missing", "restart")


@pytest.mark.parametrize("spoil", slow_but(["bit flipped", "another network's"], SPOILS))
def test_a_spoilt_ticket_of_a_finished_search(
    spoil: str,
    run: Run,
    finished: tuple[Path, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Retraining it structured is refused; the search's results stay."""
    root = tmp_path / "runs"
    shutil.copytree(finished[0], root)
    search = root / find_results(root)[0].search
    path = search / "round_01" / "unstructured" / "ticket.safetensors"
    if spoil == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif spoil == "bit flipped":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif spoil == "newer schema":
        whole = Ticket.load(path)
        with monkeypatch.context() as patch:
            patch.setattr(ticket, "SCHEMA", ticket.SCHEMA + 1)
            whole.save(path)
    elif spoil == "another network's":
        Ticket({}, {"w": torch.ones(1)}, {"w": torch.ones(1)}).save(path)
    elif spoil == "not a ticket":
        torch.save({"w": torch.ones(1)}, path)
    elif spoil == "missing":
        path.unlink()
    else:
        path = search / "restart.pt"
        path.write_bytes(path.read_bytes()[:1000])
    before = {name: found for name, found in contents(root).items() if name.endswith("result.json")}
    line = run(root, *REFILL)
    assert line.startswith("error: ")
    assert spoil == "another network's" or str(path) in line
    assert spoil != "newer schema" or "upgrade" in line
    assert before.items() <= contents(root).items()
