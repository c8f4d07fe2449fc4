"""The pages are built without a warning, hold every public name and module, and load nothing from elsewhere."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import lt_lightning

pytest.importorskip("mkdocs", reason="needs the extra `docs`")
pytest.importorskip("mkdocstrings", reason="needs the extra `docs`")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr
    return folder


def texts(site: Path) -> dict[str, str]:
    return {path.relative_to(site).parent.as_posix(): path.read_text() for path in site.rglob("index.html")}


@pytest.mark.slow
def test_strict_build(site: Path) -> None:
    pages = texts(site)
    assert {".", "tutorial", "own_network", "options", "api", "api/lt_lightning", "api/structures"} <= set(pages)
    for text in pages.values():
        assert not re.search(r"<(?:script|img|iframe)[^>]* src=\"?(?:https?:)?//", text)
        assert not re.search(r"<link[^>]* href=\"?(?:https?:)?//[^>]*stylesheet", text)
    assert 'id="lt_lightning.training.callback.LotteryTicketPruning"' in pages["api/training"]
    assert "&gt;&gt;&gt;" in pages["api/pruning"]  # a doctest
    assert not re.search(r"<blockquote>\s*(<blockquote>|<p>&gt;)", pages["api/pruning"])  # that is no code
    for name in ("api_pages.py", "masks.py", "tutorial_page.py"):
        assert not (site / name).exists()
    assert json.loads((site / "tutorial.ipynb").read_text())["nbformat"] == 4


@pytest.mark.slow
def test_every_link_within_the_pages_leads_somewhere(site: Path) -> None:
    pages = texts(site)
    ids = {name: set(re.findall(r'\sid="?([^"\s>]+)', text)) for name, text in pages.items()}
    links = 0
    for name, text in pages.items():
        for link in set(re.findall(r'<a [^>]*href="?([^"\s>]+)', text)):
            address = urlsplit(html.unescape(link))
            if address.scheme or link.startswith("//"):
                continue
            links += 1
            target = os.path.normpath(Path(name) / address.path)
            anchor = unquote(address.fragment)
            if target in pages:
                assert not anchor or anchor.startswith("__") or anchor in ids[target], f"{name}: {link}"
            else:
                assert (site / target).is_file(), f"{name}: {link}"
    assert links > 1000


@pytest.mark.slow
def test_public_names_are_first_and_described(site: Path) -> None:
    pages = texts(site)
    for name in lt_lightning.__all__:
        assert f'id="lt_lightning.{name}"' in pages["api/lt_lightning"]
        (row,) = re.findall(rf"<tr>\s*<td><a [^>]*#lt_lightning\.{name}\".*?</tr>", pages["api"], re.DOTALL)
        assert re.search(r"<td>\w[^<]{20,}", row)
    order = re.findall(r'href="(\w+)/"><code>lt_lightning', pages["api"])
    assert order[:4] == ["lt_lightning", "training", "structures", "pruning"]


@pytest.mark.slow
def test_options_are_found_by_key_and_by_its_parts(site: Path) -> None:
    """As the search of the pages splits words."""
    index = json.loads((site / "search" / "search_index.json").read_text())
    separator = re.compile(index["config"]["separator"])
    (section,) = [each for each in index["docs"] if each["location"] == "options/#pruning"]
    words = set(separator.split(re.sub("<[^>]*>", " ", section["text"]).lower()))
    assert set(separator.split("pruning.rate")) == {"pruning", "rate"} <= words
    assert "0.2" in words  # numbers stay whole
    assert "options_filter.js" in texts(site)["options"]


@pytest.mark.slow
def test_a_browser_filters_options_and_finds_a_key(site: Path, browser: Any) -> None:
    handler = partial(QuietHandler, directory=str(site))  # the search needs a server
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        page = browser.new_page()
        page.goto(f"{address}/options/#pruning.rewind")
        assert page.input_value("#option-filter") == "pruning.rewind"
        assert page.locator("tbody tr:visible td:first-child").all_inner_texts() == ["pruning.rewind"]
        assert page.locator("table:visible").count() == page.locator("h2:visible").count() == 1
        page.fill("#option-filter", "optimizer steps")  # in no key
        assert "pruning.rewind" in page.locator("tbody tr:visible td:first-child").all_inner_texts()
        assert page.locator("#option-filter + p:visible").count() == 0
        page.fill("#option-filter", "no such option")
        below = page.locator("h2, h2 ~ *").all()
        assert len(below) > 40
        assert [each.inner_text() for each in below if each.is_visible()] == []
        assert page.locator("#option-filter + p:visible").count() == 1
        page.fill("[data-md-component=search-query]", "pruning.rate")
        first = page.locator(".md-search-result__link").first
        first.wait_for(state="attached", timeout=60_000)
        assert "/options/" in first.evaluate("link => link.href")
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files, and says nothing of it."""

    def log_message(self, format: str, *args: object) -> None:
        return


def test_each_public_module_is_on_one_page(script: Callable[[str], ModuleType]) -> None:
    api = script("docs/api_pages.py")
    listed = [name for modules in api.modules_by_folder(ROOT).values() for name in modules]
    files = {path for path in (ROOT / "lt_lightning").rglob("*.py") if not path.name.startswith("_")}
    assert len(listed) == len(set(listed))
    assert {ROOT / f"{name.replace('.', '/')}.py" for name in listed} == files
    text = api.page("structures", ["lt_lightning.structures.nm"], ROOT)
    assert text.startswith("# lt_lightning.structures\n\nFrom a round's mask")
    assert text.endswith("\n\n::: lt_lightning.structures.nm\n")
    assert sorted(name for names in api.PUBLIC.values() for name in names) == sorted(lt_lightning.__all__)
    assert set(api.FOLDERS) <= {"lt_lightning", *(path.parent.name for path in files)}


def test_doctests_become_code(script: Callable[[str], ModuleType]) -> None:
    fenced = script("docs/fenced_doctests.py").fenced
    assert fenced("A.\n\n>>> f(1)\n[2]\n>>> g()") == "A.\n\n```pycon\n>>> f(1)\n[2]\n>>> g()\n```"
    assert fenced("Example:\n    >>> f(\n    ...     1)\n    2\n\n    End.") == (
        "Example:\n    ```pycon\n    >>> f(\n    ...     1)\n    2\n    ```\n\n    End."
    )
    assert fenced("Nothing > here.") == "Nothing > here."
