"""What Ray costs on one machine, against the plain loop; and whether decoding and PNGs belong into the actor.

python -m benchmarks.cluster                    the default models' architectures, with seeded random weights
python -m benchmarks.cluster --models micro     the bundled models

Every run is a process of its own. Rates are those of the steady state, by the times at which PNGs were written: from
the first on after a tenth of the photos; starting is told apart. `tasks` is not what the program does: photos are
decoded by tasks of Ray's, travel through its object store to an actor that has the models, and from there to tasks
that write PNGs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.throughput import SIZES_WH, apart, describe_machine, save_models, save_photos
from config_utilities import PROGRAM_DIR

PHOTOS = {"micro": 1200, "full": 16}


def main() -> None:
    """Measures and prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=("full", "micro"), default="full")
    parser.add_argument("--photos", type=int, help="how many (default: by models)")
    parser.add_argument("--actors", type=int, nargs="*", default=[1, 2], help="numbers of actors to measure")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    micro = arguments.models == "micro"
    with tempfile.TemporaryDirectory(prefix="sam2vit-benchmark-") as folder:
        root = Path(folder)
        os.environ["SAM2VIT_CHECKPOINTS"] = str(root / "checkpoints")
        sam_path, clip_path = apart(save_models, root / "checkpoints", micro=micro)
        count = arguments.photos or PHOTOS[arguments.models]
        save_photos(root / "photos", SIZES_WH[arguments.models][:3], count, root / "scenes")
        flags = ["--micro"] if micro else ["-s", str(sam_path), "-m", str(clip_path)]
        flags += ["-i", str(root / "photos"), "--quiet", "--no-report"]
        runs = {"plain loop": flags}
        for actors in arguments.actors:
            runs[f"Ray, {actors} actor{'s' * (actors > 1)}"] = [*flags, "--ray", "--ray-actors", str(actors)]
        subprocess.run(
            _command([*flags, "--limit", "1", "-o", str(root / "warm")]), check=True
        )  # the prompts' features
        result = {
            name: time_run(_command(run), root / f"out-{place}") for place, (name, run) in enumerate(runs.items())
        }
        tasks = [sys.executable, "-m", "benchmarks.cluster_tasks", *flags]
        result["Ray, decoding and PNGs as tasks"] = time_run(tasks, root / "out-tasks")
    machine = describe_machine("cpu") | {"models": arguments.models, "photos": count}
    if arguments.json:
        json.dump(machine | {"runs": result}, sys.stdout, indent=1)
        return
    table = Table("engine", "photos/s", "against the plain loop", "s until the first", "s in all")
    plain = result["plain loop"]["rate"]
    for name, run in result.items():
        rate, ratio = ("", "not steady") if run["rate"] is None else (f"{run['rate']:.3g}", "")
        if rate and plain is not None:
            ratio = f"{100 * (plain / run['rate'] - 1):+.1f}% time"
        table.add_row(name, rate, ratio, f"{run['first']:.1f}", f"{run['seconds']:.1f}")
    console = Console(width=120)
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()), highlight=False)
    console.print(table)


def _command(flags: Sequence[str]) -> list[str]:
    return [sys.executable, str(PROGRAM_DIR / "main.py"), *flags]


def time_run(command: Sequence[str], output: Path) -> dict[str, float | None]:
    """Returns what a run takes: photos a second in the steady state, and seconds until its first PNG and in all."""
    began = time.time()
    subprocess.run([*command, "-o", str(output)], check=True, cwd=PROGRAM_DIR)
    seconds = time.time() - began
    times = sorted(path.stat().st_mtime for path in output.rglob("*.png"))
    return {"rate": steady_rate(times, seconds), "first": times[0] - began, "seconds": seconds}


def steady_rate(times: Sequence[float], seconds: float) -> float | None:
    """Returns photos a second in the steady state, by the times at which their PNGs were written, in order.

    There was none, None, where all were written within a tenth of the run's seconds, or with one pause that takes up a
    third of what is measured.
    """
    if times[-1] - times[0] < seconds / 10:
        return None
    measured = times[max(1, len(times) // 10) - 1 :]
    took = measured[-1] - measured[0]
    if max(later - earlier for earlier, later in itertools.pairwise(measured)) > took / 3:
        return None
    return (len(measured) - 1) / took


if __name__ == "__main__":
    main()
