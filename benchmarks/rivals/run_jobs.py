"""Runs archives with whatever revision of the engine is on the path; for ``archive``.

    python run_jobs.py BUNDLE DEVICE THREADS

Each line on standard input names an archive and a run folder, as JSON; each answer is a line
with the seconds of the run. It uses nothing but the Python API, which older revisions have, too.
"""

import json
import sys
import time

PROMPTS = {
    "mass": "breast ultrasound showing a mass",
    "cyst": "breast ultrasound showing a cyst",
}


def main() -> None:
    """Open the engine once, then do what comes."""
    from medclipsam.engine import Engine

    bundle, device, threads = sys.argv[1:]
    engine = Engine.open(bundle, device, threads=int(threads))
    for line in sys.stdin:
        archive, out = json.loads(line)
        started = time.perf_counter()
        summary = engine.run(archive, PROMPTS, out)
        found = {"seconds": time.perf_counter() - started, "items": summary.items}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":  # decoding processes import this file
    main()
