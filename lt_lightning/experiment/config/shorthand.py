"""What may be written shorter on the command line: `seeds=5`, and densities without their group."""

from __future__ import annotations

from collections.abc import Sequence

SWEEP = ("-m", "--multirun")


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """Return the arguments as Hydra knows them.

    `seeds=5` stands for `seed=0,1,2,3,4`, and the command is a sweep then, as with `-m`; `density=0.5,0.1` stands for
    `pruning.density=[0.5,0.1]`, which one search passes through.

    Args:
        arguments: arguments of the command line, without the command.

    Raises:
        ValueError: if `seeds` is no number of seeds, or if single seeds are named beside it.

    >>> spelled_out(["data=digits", "seeds=3", "density=0.5,0.1"])
    ['-m', 'data=digits', 'seed=0,1,2', 'pruning.density=[0.5,0.1]']
    >>> spelled_out(["density=0.5", "model.width=8"])
    ['pruning.density=0.5', 'model.width=8']
    """
    keys = {argument.partition("=")[0] for argument in arguments}
    if keys >= {"seed", "seeds"}:
        raise ValueError("seeds counts from 0, seed names single ones: write one of the two")
    written = [_spelled_out(argument) for argument in arguments]
    several = any(
        before.startswith("seeds=") and "," in after for before, after in zip(arguments, written, strict=True)
    )
    return [SWEEP[0]] * (several and not set(SWEEP) & set(arguments)) + written


def _spelled_out(argument: str) -> str:
    key, _, value = argument.partition("=")
    if key == "density":
        return f"pruning.density=[{value}]" if "," in value and not value.startswith("[") else f"pruning.{argument}"
    if key != "seeds":
        return argument
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"{argument}: must be the number of seeds, at least 1; single ones are named as seed=3,4")
    return f"seed={','.join(map(str, range(int(value))))}"
