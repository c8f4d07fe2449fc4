"""Exports the network that a finished ticket executes, for use elsewhere: safetensors, torch.export, ONNX.

python scripts/export.py runs/digits-resnet8-s0-HASH/round_03/refill-HASH exported
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hydra.errors import InstantiationException

from lt_lightning.tickets.export.exporting import FORMATS, export_ticket

EXPECTED = (ValueError, OSError, ImportError, RuntimeError, InstantiationException)


def main() -> None:
    options = _options()
    try:
        card = export_ticket(options.ticket, options.output, options.formats, options.batch_size)
    except EXPECTED as error:
        sys.exit(f"error: {str(error).strip().splitlines()[0]}")
    for name, facts in card["formats"].items():
        for file, size in facts["bytes"].items():
            print(f"{options.output / file}  {size / 1e6:.3f} MB")
        if facts.get("run_dense"):
            print(f"  {name} has no operator for these layers, which run dense: {', '.join(facts['run_dense'])}")
    worst = max(facts["difference"] for facts in card["formats"].values())
    print(f"Logits differ from the masked network's by at most {worst:.1e} of the largest.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ticket", type=Path, help="folder of a finished ticket: SEARCH/round_NN/STRUCTURE")
    parser.add_argument("output", type=Path, help="folder to write, new or empty")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument(
        "--batch-size", type=int, help="compute a layer by blocks only where that is measured faster at this batch size"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
