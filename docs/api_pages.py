"""A hook of MkDocs: an overview of the API, a page of the public names, and a page for each folder of the package."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE: Final = "lt_lightning"

# The names of `lt_lightning.__all__`, in the order in which a reader meets them.
PUBLIC: Final = {
    "Search and retraining": ["LotteryTicketPruning", "TicketTraining", "ImageClassifier"],
    "Tickets": ["Ticket", "Restart"],
    "Structures": ["Refill", "Regroup", "Hybrid", "Filters"],
    "Smaller networks": ["shrink", "ShrunkNetwork", "load_shrunk", "load_network"],
}

# Folders that are not named here follow in the order of the alphabet.
FOLDERS: Final = (
    PACKAGE, "training", "structures", "pruning", "tickets", "execution", "models", "data", "network_graph",
    "experiment", "results", "report", "storage",
)  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, and their part of the navigation."""
    root = Path(config.config_file_path).parent
    folders = modules_by_folder(root)
    pages = {f"api/{name}.md": page(name, modules, root) for name, modules in folders.items()}
    for path, content in ({"api/index.md": overview(list(folders), root)} | pages).items():
        files.append(File.generated(config, path, content=content))
    config.nav = [*(config.nav or []), {"API": ["api/index.md", *pages]}]
    return files


def modules_by_folder(root: Path) -> dict[str, list[str]]:
    """Public modules with content, by the folder of the package that they are in; `lt_lightning` for those in none."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not parts[-1].startswith("_"):
            found[parts[1] if len(parts) > 2 else PACKAGE].append(".".join(parts))
    return {name: found[name] for name in sorted(found, key=_place)}


def _place(folder: str) -> tuple[int, str]:
    return (FOLDERS.index(folder) if folder in FOLDERS else len(FOLDERS), folder)


def overview(folders: Sequence[str], root: Path) -> str:
    """The page of contents."""
    names = [f"| [`{name}`]({PACKAGE}.md#{PACKAGE}.{name}) | {about} |" for name, about in _summaries(root).items()]
    rows = [f"| [`{_dotted(folder)}`]({folder}.md) | {_first_paragraph(_about(folder, root))} |" for folder in folders]
    return "\n".join(
        [
            "# API\n",
            "## Public names\n",
            f"`from {PACKAGE} import …`; each is imported when it is first used, so that tickets and structures need "
            "PyTorch alone.\n",
            "| name | what it is |",
            "| - | - |",
            *names,
            "\n## Pages\n",
            "| page | what it has |",
            "| - | - |",
            *rows,
            "",
        ]
    )


def page(folder: str, modules: Sequence[str], root: Path) -> str:
    """The Markdown of one page."""
    names = list(_public()) if folder == PACKAGE else []
    parts = [f"# {_dotted(folder)}", _about(folder, root), *names, *(f"::: {module}" for module in modules)]
    first = ["---\nsearch:\n  boost: 2\n---"] if folder == PACKAGE else []
    return "\n\n".join([*first, *parts]) + "\n"


def _public() -> Iterator[str]:
    for title, names in PUBLIC.items():
        yield f"## {title}"
        yield from (f"::: {PACKAGE}.{name}\n    options:\n      heading_level: 3" for name in names)


def _dotted(folder: str) -> str:
    return PACKAGE if folder == PACKAGE else f"{PACKAGE}.{folder}"


def _about(folder: str, root: Path) -> str:
    path = root / PACKAGE / ("" if folder == PACKAGE else folder) / "__init__.py"
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def _summaries(root: Path) -> Mapping[str, str]:
    """The first sentence of the docstring of every public name."""
    tree = ast.parse((root / PACKAGE / "__init__.py").read_text())
    homes = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE)
        for alias in node.names
    }
    return {
        name: _summary(root / f"{homes[name].replace('.', '/')}.py", name)
        for names in PUBLIC.values()
        for name in names
    }


def _summary(path: Path, name: str) -> str:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return _first_paragraph(ast.get_docstring(node) or "")
    raise ValueError(f"{path}: has no class or function {name}")


def _first_paragraph(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split())
