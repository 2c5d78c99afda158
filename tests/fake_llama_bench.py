"""A stand-in for llama.cpp's ``llama-bench``: one JSON line per test, a pause before each, as that prints them."""

import json
import sys
import time
from pathlib import Path

here = Path(sys.argv[0]).parent
(here / "said.txt").write_text(" ".join(sys.argv[1:]))
options = dict(zip(sys.argv[-2::-2], sys.argv[:0:-2], strict=False))
tests = [int(n) for key in ("-p", "-n") for n in options[key].split(",") if n != "0"]
assert (options["-r"], options["-o"]) == ("1", "jsonl")
for i, tokens in enumerate(tests):
    for _ in range(5):  # work, or the pause: it must not go on while others are measured
        time.sleep(0.005)
        with (here / "beats.txt").open("a") as beats:
            beats.write(".")
    print(json.dumps({"build_number": 7, "build_commit": "abc", "avg_ts": 1000.0 * tokens + i}), flush=True)
sys.exit("no more tests")
