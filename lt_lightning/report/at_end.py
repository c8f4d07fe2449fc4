"""The report at the end of a run or a sweep: it costs seconds, and never fails what it reports of."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from lt_lightning.report import FILE, FOLDER
from lt_lightning.study.failures import FILE as FAILURE
from lt_lightning.study.results import FILE as RESULT


def report_at_end(folder: Path, console: Console) -> None:
    """Writes the report of a search or of a sweep's jobs, unless the one that is there is as new as its results.

    Args:
        folder: of the search, or of the jobs; nothing happens if there is none, as nothing was run then.
        console: to tell where it is, or in one line why it could not be written.
    """
    if not folder.is_dir():
        return
    told = str(file := folder / FOLDER / FILE)
    try:
        if not _is_current(file, folder):
            from lt_lightning.report.write import write_report  # slow to import

            write_report(folder)
    except Exception as error:  # whatever it is, the results are there
        told = f"not written: {type(error).__name__}: {error}".splitlines()[0]
    console.print(f"{'Report:':9}{told}", markup=False, highlight=False, soft_wrap=True)


def _is_current(report: Path, search: Path) -> bool:
    """Whether nothing of a search has finished or failed since its report was written; of jobs that is not known."""
    if not report.is_file() or not (search / "config.yaml").is_file():
        return False
    changing = [search / "config.yaml", *search.glob("*.json")]
    changing += [file for name in (RESULT, FAILURE) for file in search.glob(f"round_*/*/{name}")]
    return all(file.stat().st_mtime_ns < report.stat().st_mtime_ns for file in changing)
