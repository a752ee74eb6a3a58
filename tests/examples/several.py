"""Calls an example's main() once for each of several command lines: several.py FOLDER '[["--epochs", "1"], ...]'.

Importing a framework takes longer than most of the trainings, so that they share one start. The example is the module
`train` on the PYTHONPATH. Each rank writes FOLDER/RANK.json: of each line the exit status, standard output and standard
error.
"""

import contextlib
import io
import json
import os
import sys
import traceback
from pathlib import Path

import train


def outcome(line):
    sys.argv = ["train.py", *line]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = train.main()
        except SystemExit as end:
            status = end.code
        except Exception:
            status = 1
            traceback.print_exc()
    return status, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    folder, lines = sys.argv[1:]
    outcomes = [outcome(line) for line in json.loads(lines)]
    Path(folder, f"{os.environ.get('OMPI_COMM_WORLD_RANK', 0)}.json").write_text(json.dumps(outcomes))
