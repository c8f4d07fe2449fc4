"""A hook of MkDocs: a page for each folder of the package, with the docstrings of its modules."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE: Final = "lt_lightning"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, and their part of the navigation."""
    root = Path(config.config_file_path).parent
    pages = {f"api/{name}.md": page(name, modules, root) for name, modules in modules_by_folder(root).items()}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    config.nav = [*(config.nav or []), {"API": list(pages)}]
    return files


def modules_by_folder(root: Path) -> dict[str, list[str]]:
    """Public modules with content, by the folder of the package that they are in; `lt_lightning` for those in none."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] != "__init__" and not parts[-1].startswith("_"):
            found[parts[1] if len(parts) > 2 else PACKAGE].append(".".join(parts))
    return {name: found[name] for name in sorted(found, key=lambda name: (name != PACKAGE, name))}


def page(folder: str, modules: list[str], root: Path) -> str:
    """The Markdown of one page."""
    path = root / PACKAGE / ("" if folder == PACKAGE else folder) / "__init__.py"
    about = ast.get_docstring(ast.parse(path.read_text())) or ""
    title = PACKAGE if folder == PACKAGE else f"{PACKAGE}.{folder}"
    return "\n\n".join([f"# {title}", about, *(f"::: {module}" for module in modules)]) + "\n"
