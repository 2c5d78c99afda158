"""A wheel's path in; exit status 0 when it holds the package, its data and nothing else."""

import sys
import zipfile

LIMIT = 8_000_000  # bytes of the wheel: the demo model and the code
NEEDED = (
    "openlpu/py.typed", "openlpu/cli.py", "openlpu/checkpoint/demo/model.safetensors",
    "openlpu/checkpoint/demo/tokenizer.json", "openlpu/arch/chips/lpu_v1.toml", "openlpu/arch/chips/tiny.toml",
)

with zipfile.ZipFile(sys.argv[1]) as wheel:
    names = wheel.namelist()
    packed = sum(item.compress_size for item in wheel.infolist())
stray = [name for name in names if not name.startswith(("openlpu/", "openlpu-")) or "__pycache__" in name]
missing = [name for name in NEEDED if name not in names]
print(f"{len(names)} files, {packed / 1e6:.2f} MB")
if stray or missing or packed > LIMIT:
    sys.exit(f"stray: {stray}\nmissing: {missing}\nlimit: {LIMIT / 1e6} MB")
