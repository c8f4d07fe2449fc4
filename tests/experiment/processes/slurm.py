"""A SLURM of one machine, for tests: `sbatch`, `srun`, `scontrol` and `sacct`, each a link to this file.

Of a job array it runs one task after the other, each a job step of its own; one that asked for it is run again. Its
state is in the folder that `FAKE_SLURM` names.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

JOB = "77"


def sbatch(state: Path, script: str) -> None:
    """Takes a copy of the script, and lets it run when this process has ended."""
    copy = state / "script.sh"
    copy.write_text(Path(script).read_text())
    nowhere = subprocess.DEVNULL  # submitit waits for the end of what this process writes
    subprocess.Popen([sys.executable, __file__, "run"], start_new_session=True, stdout=nowhere, stderr=nowhere)
    print(f"Submitted batch job {JOB}")


def run(state: Path) -> None:
    """Every task of the array, until it no longer asks to be run again."""
    script = state / "script.sh"
    array = re.search(r"--array=0-(\d+)", script.read_text())
    assert array is not None
    for task in range(int(array[1]) + 1):
        own = {
            "SLURM_JOB_ID": str(int(JOB) + 1 + task), "SLURM_ARRAY_JOB_ID": JOB, "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_JOB_NAME": "lt-lightning", "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1",
            "SLURM_NNODES": "1",
        }  # fmt: skip
        again = state / f"requeue-{JOB}_{task}"
        while True:
            subprocess.run(["bash", str(script)], env={**os.environ, **own}, check=False)
            if not again.exists():
                break
            again.rename(again.with_name(f"again-{JOB}_{task}"))


def srun(state: Path, options: list[str]) -> None:
    """Starts the command once for each task of a job step, and ends when all have ended."""
    (tasks,) = re.findall(r"--ntasks-per-node=(\d+)", (state / "script.sh").read_text())
    running = []
    for rank in range(int(tasks)):
        if (pid := os.fork()) == 0:
            become(rank, int(tasks), options)
        running.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in running]
    sys.exit(max(map(abs, codes)))


def become(rank: int, tasks: int, options: list[str]) -> None:
    """Becomes the command, as one task of a job step."""
    files = {}
    while options[0].startswith("--"):
        option = options.pop(0)
        if option in ("--output", "--error"):
            files[option] = options.pop(0)
    known = {"%A": JOB, "%a": os.environ["SLURM_ARRAY_TASK_ID"], "%t": str(rank)}
    for option, number in (("--output", 1), ("--error", 2)):
        name = re.sub("%[Aat]", lambda found: known[found[0]], files[option])
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), number)
    own = {"SLURM_NTASKS": str(tasks), "SLURM_NTASKS_PER_NODE": str(tasks)}
    own |= {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODELIST": "localhost"}
    os.execvpe(options[0], options, {**os.environ, **own, "SLURM_NODEID": "0", "FAKE_STEP": "1"})


def main() -> None:
    state = Path(os.environ["FAKE_SLURM"])
    match "run" if sys.argv[1:] == ["run"] else Path(sys.argv[0]).name:
        case "sbatch":
            sbatch(state, sys.argv[1])
        case "srun":
            srun(state, sys.argv[1:])
        case "scontrol":
            assert sys.argv[1] == "requeue"
            (state / f"requeue-{sys.argv[2]}").touch()
        case "sacct":
            print(f"JobID|State|NodeList\n{JOB}_[0-1]|RUNNING|localhost")
        case "run":
            run(state)


if __name__ == "__main__":
    main()
