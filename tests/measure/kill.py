"""kill -9 at random moments, then --resume: are the outputs the same bytes as those of an undisturbed run?

python tests/measure/kill.py --model FOLDER --text FILE [--rounds 20]
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def command(given: argparse.Namespace, output: Path, *more: str) -> list[str]:
    words = [sys.executable, "-m", "crepe", "prune", "--model", given.model, "--output", str(output)]
    return [*words, "--calibration", given.text, "--samples", "4", "--seqlen", "64", "--pattern", "2:4", *more]


def content(folder: Path) -> dict[str, bytes]:
    """Every file but crepe.json, which holds the seconds that the run took."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "crepe.json"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    start = time.perf_counter()
    subprocess.run(command(given, folder / "whole", "--pipeline", "sequential"), check=True, capture_output=True)
    length = time.perf_counter() - start
    wanted, same, random_time = content(folder / "whole"), 0, random.Random(0)
    for number in range(given.rounds):
        output = folder / "killed"
        process = subprocess.Popen(
            command(given, output, "--pipeline", "sequential", "--resume"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        moment = random_time.uniform(0.2, length)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        journal = folder / "killed.partial" / "journal.jsonl"
        blocks = len(journal.read_text().splitlines()) - 1 if journal.exists() else 0
        resumed = command(given, output, "--pipeline", "sequential", "--resume")
        subprocess.run(resumed, check=True, capture_output=True)
        same += content(output) == wanted
        print(f"{number}: killed after {moment:.1f} of {length:.1f} s with {blocks} blocks finished", flush=True)
        shutil.rmtree(output)
    print(f"{same} of {given.rounds} outputs are byte-identical")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
