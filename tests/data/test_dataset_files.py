"""Finding and downloading files, from a server on this machine."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from lt_lightning.data.dataset_files import Files, digest_of, fetch, find, read_gzip, read_image


class Server:
    """Serves `content` by path, notes in `asked` what was asked for.

    A path in `broken` breaks off half-way, one in `stalled` waits there until `released`.
    """

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.broken: set[str] = set()
        self.stalled: set[str] = set()
        self.released = threading.Event()
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                body = outer.content.get(self.path)
                self.send_response(404 if body is None else 200)
                body = body or b""
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                half = len(body) // 2
                self.wfile.write(body[:half])
                if self.path in outer.stalled:
                    outer.released.wait(60)
                elif self.path not in outer.broken:
                    self.wfile.write(body[half:])

            def log_message(self, format: str, *args: object) -> None:
                """Silence."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def put(self, name: str, body: bytes) -> tuple[str, str]:
        """URL and checksum."""
        self.content[f"/{name}"] = body
        return f"http://127.0.0.1:{self.http.server_port}/{name}", "sha256:" + hashlib.sha256(body).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()
    server.thread.join()


def tar_gz(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def zipped(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return buffer.getvalue()


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_digest_is_of_the_contents_of_files_and_of_folders(tmp_path: Path) -> None:
    files = Files("set", ("labels.txt", "images"))
    digests = []
    for label, image in ((b"0", b"A"), (b"1", b"A"), (b"0", b"B"), (b"0", b"A")):
        (tmp_path / "set" / "images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "labels.txt").write_bytes(label)
        (tmp_path / "set" / "images" / "0.png").write_bytes(image)
        digests.append(digest_of(tmp_path, files))
    assert len(set(digests)) == 3
    assert digests[0] == digests[3]


def test_plain_files_are_downloaded_and_readable_by_others(server: Server, tmp_path: Path) -> None:
    downloads = dict([server.put("a.gz", b"A" * 1000), server.put("b.gz", b"B")])
    root = tmp_path / "not" / "there"
    fetch(root, Files("set", ("a.gz", "b.gz"), downloads))
    assert tree(root) == {"set/a.gz": b"A" * 1000, "set/b.gz": b"B"}
    assert stat.S_IMODE((root / "set" / "a.gz").stat().st_mode) & 0o444 == 0o444


def test_a_tar_archive_is_unpacked_and_not_kept(server: Server, tmp_path: Path) -> None:
    archive = tar_gz({"set/one.bin": b"1", "set/two.bin": b"2", "set/readme.html": b"not wanted"})
    files = Files("set", ("one.bin", "two.bin"), dict([server.put("set.tar.gz", archive)]))
    fetch(tmp_path, files)
    assert tree(tmp_path) == {"set/one.bin": b"1", "set/two.bin": b"2"}
    assert find(tmp_path, files) == tmp_path / "set"


def test_a_zip_archive_is_unpacked_with_its_folders(server: Server, tmp_path: Path) -> None:
    archive = zipped({"set/names.txt": b"n", "set/train/a/1.JPEG": b"1", "set/test/2.JPEG": b"not wanted"})
    fetch(tmp_path, Files("set", ("names.txt", "train"), dict([server.put("set.zip", archive)])))
    assert tree(tmp_path) == {"set/names.txt": b"n", "set/train/a/1.JPEG": b"1"}


def test_what_is_there_is_neither_downloaded_nor_changed(server: Server, tmp_path: Path) -> None:
    downloads = dict([server.put("a.gz", b"official"), server.put("b.gz", b"B")])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.gz").write_bytes(b"put here by hand")
    files = Files("set", ("a.gz", "b.gz"), downloads)
    fetch(tmp_path, files)
    assert server.asked == ["/b.gz"]
    fetch(tmp_path, files)
    assert server.asked == ["/b.gz"]
    assert tree(tmp_path) == {"set/a.gz": b"put here by hand", "set/b.gz": b"B"}


def test_of_an_archive_only_what_is_missing_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "one.bin").write_bytes(b"mine")
    archive = tar_gz({"set/one.bin": b"1", "set/two.bin": b"2"})
    fetch(tmp_path, Files("set", ("one.bin", "two.bin"), dict([server.put("set.tar.gz", archive)])))
    assert tree(tmp_path) == {"set/one.bin": b"mine", "set/two.bin": b"2"}


def check_one_line(error: pytest.ExceptionInfo[FileNotFoundError], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    good, bad = server.put("a.gz", b"A"), server.put("b.gz", b"B")
    server.content["/b.gz"] = b"tampered"
    with pytest.raises(FileNotFoundError) as error:
        fetch(tmp_path, Files("set", ("a.gz", "b.gz"), dict([good, bad])))
    check_one_line(error, f"root={tmp_path}", "a.gz, b.gz", str(tmp_path / "set"), "checksum")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_connection_leaves_nothing(server: Server, tmp_path: Path) -> None:
    files = Files("set", ("one.bin",), dict([server.put("set.tar.gz", tar_gz({"set/one.bin": bytes(300_000)}))]))
    server.broken.add("/set.tar.gz")
    with pytest.raises(FileNotFoundError) as error:
        fetch(tmp_path, files)
    check_one_line(error, "put one.bin into", "set.tar.gz")
    assert list(tmp_path.iterdir()) == []
    server.broken.clear()
    fetch(tmp_path, files)
    assert list(tree(tmp_path)) == ["set/one.bin"]


def test_no_server_leaves_nothing_and_says_what_to_put_where(tmp_path: Path) -> None:
    files = Files("set", ("one.bin",), {"http://127.0.0.1:9/set.tar.gz": "md5:0"})
    with pytest.raises(FileNotFoundError) as error:
        fetch(tmp_path, files)
    check_one_line(error, f"root={tmp_path}: put one.bin into {tmp_path / 'set'}", "http://127.0.0.1:9/set.tar.gz")
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_is_gone_says_so(server: Server, tmp_path: Path) -> None:
    url, checksum = server.put("a.gz", b"A")
    server.content.clear()
    with pytest.raises(FileNotFoundError, match="404"):
        fetch(tmp_path, Files("set", ("a.gz",), {url: checksum}))


def test_an_archive_without_the_files_leaves_nothing(server: Server, tmp_path: Path) -> None:
    archive = tar_gz({"set/one.bin": b"1"})
    with pytest.raises(FileNotFoundError, match=r"\btwo\.bin\b"):
        fetch(tmp_path, Files("set", ("one.bin", "two.bin"), dict([server.put("set.tar.gz", archive)])))
    assert not list(tmp_path.rglob("two.bin"))
    assert not list(tmp_path.glob(".*"))


def test_a_killed_download_does_not_count(server: Server, tmp_path: Path) -> None:
    archive = tar_gz({"set/one.bin": random.Random(0).randbytes(500_000)})
    files = Files("set", ("one.bin",), dict([server.put("set.tar.gz", archive)]))
    server.stalled.add("/set.tar.gz")
    program = (
        "import sys; from pathlib import Path; from lt_lightning.data.dataset_files import *\n"
        "fetch(Path(sys.argv[1]), {})"
    )
    child = subprocess.Popen([sys.executable, "-c", program.format(files), str(tmp_path)], stderr=subprocess.DEVNULL)
    while not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    server.released.set()
    assert [path for path in tmp_path.rglob("*") if path.is_file()]  # half of the archive is left, under another name
    with pytest.raises(FileNotFoundError, match=r"\bone\.bin\b"):
        find(tmp_path, files)
    server.stalled.clear()
    fetch(tmp_path, files)
    assert (find(tmp_path, files) / "one.bin").stat().st_size == 500_000


def test_an_interrupt_while_entries_are_moved_leaves_whole_entries_only(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tar_gz({"set/one.bin": b"1", "set/two.bin": b"2"})
    files = Files("set", ("one.bin", "two.bin"), dict([server.put("set.tar.gz", archive)]))
    rename = Path.replace

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == "two.bin":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path, files)
    assert tree(tmp_path) == {"set/one.bin": b"1"}
    with pytest.raises(FileNotFoundError, match=r"\btwo\.bin\b"):
        find(tmp_path, files)
    monkeypatch.undo()
    fetch(tmp_path, files)
    assert tree(tmp_path) == {"set/one.bin": b"1", "set/two.bin": b"2"}


def test_what_cannot_be_downloaded_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        fetch(tmp_path, Files("imagenet", ("train", "val")))
    check_one_line(error, f"root={tmp_path}: put train, val into {tmp_path / 'imagenet'}")


def test_gzip_files_are_read_whole_or_refused(tmp_path: Path) -> None:
    body = bytes(range(256)) * 100
    path = tmp_path / "a.gz"
    packed = gzip.compress(body)
    path.write_bytes(packed)
    assert read_gzip(path) == body
    corrupt = bytearray(packed)
    corrupt[len(packed) // 2] ^= 0xFF
    for content in (packed[:-9], packed[: len(packed) // 2], b"no gzip file", bytes(corrupt)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"^{tmp_path}.*a\.gz ") as error:
            read_gzip(path)
        assert "\n" not in str(error.value)


def test_pictures_become_rgb_or_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "grey.JPEG"
    Image.new("L", (5, 4), 77).save(path)
    image = read_image(path)
    assert (image.mode, image.size, image.getpixel((2, 2))) == ("RGB", (5, 4), (77, 77, 77))
    whole = path.read_bytes()
    for content in (whole[:-20], whole[: len(whole) // 2], b"no picture", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"^{tmp_path}.*grey\.JPEG "):
            read_image(path)
