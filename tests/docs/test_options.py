"""docs/options.md is what `conf/` and the docstrings say, and all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from lt_lightning.experiment.config import option_rows

ROOT = Path(__file__).resolve().parents[2]
Load = Callable[[str], ModuleType]


@pytest.fixture
def options(script: Load) -> ModuleType:
    return script("docs/options_page.py")


def test_the_page_is_up_to_date(options: ModuleType) -> None:
    written = options.PAGE.read_text()
    assert written == options.page(), "run `python docs/options_page.py`"


def keys_of(node: object, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a container that have a value."""
    if not isinstance(node, dict) or not node:
        yield prefix
        return
    for key, value in node.items():
        yield from keys_of(value, f"{prefix}.{key}" if prefix else str(key))


def test_every_key_of_the_composed_job_has_a_row(options: ModuleType) -> None:
    """Hydra composes it, and knows nothing of how the page is made."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        job = OmegaConf.to_container(compose("run", ["logger=wandb", "structure=[refill,regroup]"]), resolve=False)
    rows = {line.split("`")[1] for line in options.PAGE.read_text().splitlines() if line.startswith("| `")}
    for key in keys_of(job):
        for name in ("structure.refill", "structure.regroup", "logger.wandb"):
            key = key.replace(f"{name}.", f"{name.partition('.')[0]}.NAME.")
        assert key in rows or key.endswith("_target_"), key


def test_every_option_is_explained() -> None:
    """By its own comment or docstring, or by a comment on the node that it is in."""
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        if "hydra" in path.parts:  # explained by Hydra
            continue
        choice = option_rows.read_choice(path)
        told = {option.key for option in choice.options if option.meaning}
        for option in choice.options:
            parent = option.key.rpartition(".")[0]
            assert choice.preset or {option.key, parent} & told, f"{path}: {option.key} needs a comment"


def test_rows_by_hand(options: ModuleType, tmp_path: Path) -> None:
    """Comments behind, above and at the top; inherited keys; what a docstring says goes before a comment."""
    group = tmp_path / "structure"
    group.mkdir()
    (tmp_path / "run.yaml").write_text("# The job.\nseed: 0  # of all\n\n# Two\n# lines.\nnode:\n  a: [1, 2]\n")
    (tmp_path / "stability.yaml").write_text("# Another.\nb: null\n")
    (group / "one.yaml").write_text(
        "# The first.\none:\n  _target_: lt_lightning.structures.nm.NM\n  n: 2  # not this\n  x: a|b  # but this\n"
    )
    page = options.page(tmp_path)
    assert "| `seed` | `0` |  | of all |" in page
    assert "| `node` |  |  | Two lines. |" in page
    assert "| `node.a` | `[1, 2]` |  |  |" in page
    assert "| `one` | The first. | [`NM`](api/structures.md#lt_lightning.structures.nm.NM) |" in page
    assert "| `structure.NAME.n` | `2` | a whole number | number of weights kept of each m |" in page
    assert "| `structure.NAME.x` | `a\\|b` |  | but this |" in page
    assert "## The job of `lt-lightning stability`\n\nAnother.\n" in page


def test_defaults_that_differ_name_their_choices(options: ModuleType, tmp_path: Path) -> None:
    group = tmp_path / "trainer"
    group.mkdir()
    (tmp_path / "run.yaml").write_text("{}\n")
    (tmp_path / "stability.yaml").write_text("{}\n")
    (group / "base.yaml").write_text("size: 1  # of it\nother: 5  # too\n")
    (group / "big.yaml").write_text("defaults: [base]\nsize: 9  # at most\n")
    page = options.page(tmp_path)
    assert "| `trainer.size` | `1`<br>`9` (big: at most) |  | of it |" in page
    assert "| `trainer.other` | `5` |  | too |" in page
    assert "| `big` | Starts from `base`. |  |" in page


def test_docstrings_are_read() -> None:
    assert option_rows.arguments_in("None.\n\nRaises:\n    ValueError: if so.") == {}
    two = option_rows.arguments_in(
        "A.\n\nArgs:\n    a: one\n        line, and\n\n        more.\n    b: `c: d`.\n\n    >>> e: f"
    )
    assert two == {"a": "one line, and more.", "b": "`c: d`."}
