"""The files of a data set: where they lie below a root folder, how they are downloaded and read."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pooch  # type: ignore[import-untyped]
from PIL import Image

from lt_lightning.storage.litter import scratch_folder


@dataclass(frozen=True)
class Files:
    """Where a data set lies on disk, and where it comes from.

    Attributes:
        folder: name of its folder, below the root.
        entries: names of the files and directories that must be in it.
        downloads: checksum ("sha256:..." or "md5:...") by URL; a URL ends with the name of an entry or is
            an archive that holds `folder`. Empty if there is no free download.
    """

    folder: str
    entries: tuple[str, ...]
    downloads: Mapping[str, str] = field(default_factory=dict)

    def missing(self, root: Path) -> list[str]:
        """Return the entries that are not there."""
        return [entry for entry in self.entries if not (root / self.folder / entry).exists()]


def find(root: Path, files: Files) -> Path:
    """Return the data set's folder.

    Raises:
        FileNotFoundError: if something is missing; says what to put where.
    """
    absent = files.missing(root)
    if absent:
        raise FileNotFoundError(_wanted(root, files, absent))
    return root / files.folder


def fetch(root: Path, files: Files) -> None:
    """Download what is missing, if anything is; files that are there are left alone, whatever they hold.

    Everything happens in a hidden scratch folder of `root`. An entry gets its name by one rename at the end, when
    its download has had the right checksum and has been unpacked: there is never half of one.

    Raises:
        FileNotFoundError: if it cannot be downloaded; says what to put where.
    """
    absent = files.missing(root)
    if not absent or not files.downloads:
        find(root, files)
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        with scratch_folder(f".{files.folder}-", root) as scratch:
            unpacked = scratch / files.folder
            for url, checksum in files.downloads.items():
                _download(url, checksum, unpacked, absent, plain=url.rsplit("/", 1)[1] in files.entries)
            (root / files.folder).mkdir(exist_ok=True)
            for entry in absent:
                (unpacked / entry).replace(root / files.folder / entry)
    except (OSError, ValueError, tarfile.TarError, zipfile.BadZipFile) as error:
        absent = files.missing(root)  # none if another process was faster
        if absent:
            raise FileNotFoundError(f"{_wanted(root, files, absent)}; {_reason(error)}") from error


SAMPLE: Final = 1000  # files of a folder, at most, that are read for a digest; of the others name and size count


def digest_of(root: Path, files: Files) -> str:
    """Return hexadecimal digits for the content of a data set's files.

    A file counts with its content, a folder with the names and sizes of all files in it, and the content of a sample:
    of all up to 1000 files, else of at most 1000, evenly spaced in the order of their names.

    Raises:
        FileNotFoundError: if something is missing; says what to put where.
    """
    folder, digest = find(root, files), hashlib.sha256()
    for entry in files.entries:
        inside = sorted(path for path in (folder / entry).rglob("*") if path.is_file())
        for path in inside or [folder / entry]:
            digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
        for path in inside[:: max(1, -(-len(inside) // SAMPLE))] or [folder / entry]:
            if path.is_file():
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _download(url: str, checksum: str, folder: Path, absent: list[str], *, plain: bool) -> None:
    """Download one URL into `folder`: a plain file, if it is absent, or what is wanted of an archive."""
    name = url.rsplit("/", 1)[1]
    if plain and name not in absent:
        return
    downloader = pooch.HTTPDownloader(progressbar=True, chunk_size=1 << 16)
    into = folder if plain else folder.parent
    path = Path(pooch.retrieve(url, known_hash=checksum, fname=name, path=into, downloader=downloader))
    if plain:
        path.chmod(0o644)  # pooch's temporary files are for their owner only
        return
    wanted = tuple(f"{folder.name}/{entry}" for entry in absent)
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            tar.extractall(folder.parent, [m for m in tar if m.name.startswith(wanted)], filter="data")
    else:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder.parent, [m for m in archive.namelist() if m.startswith(wanted)])


def _wanted(root: Path, files: Files, absent: list[str]) -> str:
    source = f" (from {', '.join(files.downloads)})" if files.downloads else ""
    return f"root={root}: put {', '.join(absent)} into {root / files.folder}{source}"


def _reason(error: Exception) -> str:
    if isinstance(error, ValueError) and not isinstance(error, OSError):  # some network errors are both
        return "the download had the wrong checksum"
    text = " ".join(str(error).split())
    return f"the download failed: {type(error).__name__}: {text[:160]}"


def bad(path: Path, problem: str) -> ValueError:
    """Return the error for a file that is there but cannot be used."""
    return ValueError(f"{path} {problem}")


def read_gzip(path: Path) -> bytes:
    """Return the decompressed content.

    Raises:
        ValueError: if the file is truncated, corrupt or no gzip file.
    """
    try:
        with gzip.open(path) as file:
            return file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise bad(path, f"is not a whole gzip file ({error})") from error


def read_image(path: Path) -> Image.Image:
    """Return a decoded picture, as RGB.

    Raises:
        ValueError: if the file is truncated, corrupt or no picture.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders raise all kinds
        raise bad(path, f"is not a whole picture ({error})") from error


def read_text(path: Path) -> str:
    """Return a text file's content.

    Raises:
        ValueError: if it is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise bad(path, f"is no text ({error.reason} at byte {error.start})") from error
