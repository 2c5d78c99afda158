"""`openlpu --help` answers at once, because nothing heavy is imported for it."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"numpy", "llvmlite", "tokenizers", "safetensors", "rich", "jinja2"}


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom openlpu.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "run" in done.stdout and "check" in done.stdout
    imported = set(done.stderr.split())
    assert "argparse" in imported and not imported & HEAVY
