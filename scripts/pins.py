"""Write requirements/python3.X.txt, for the interpreter that runs this, from requirements/setup.in.

What PyTorch's CUDA build brings along is left out: PyTorch pins it itself, and its CPU build has none of it.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

folder = Path(__file__).parent.parent / "requirements"
command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--report", "-"]
report = json.loads(subprocess.check_output([*command, "-r", str(folder / "setup.in")]))
pins = {
    item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"].split("+")[0]
    for item in report["install"]
}
target = folder / "python{}.{}.txt".format(*sys.version_info)
lines = [f"{name}=={pins[name]}" for name in sorted(pins) if not re.match(r"nvidia-|cuda-|triton$", name)]
target.write_text("# Written by `make pins` from setup.in.\n" + "\n".join(lines) + "\n")
print(f"wrote {target}: {len(lines)} packages")
