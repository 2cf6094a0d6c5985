#!/usr/bin/env bash
# Importing onnxruntime writes a file into the folder for temporary files.
#
# Versions: onnxruntime==1.31.1, numpy==2.4.6 (Linux x86-64, the CPU package)
# One would guess: an import reads; what a process leaves in the folder for temporary files it
#   removes, or at least asked to make.
# What happens: `import onnxruntime` alone, without a session, leaves `.ses` there: a time in
#   milliseconds and an identifier, on a line each. A second process reads it and leaves it as it
#   is, so that the identifier joins processes of one machine. Nothing is said.
# Why it matters: builds that compare folders before and after, tests that look for leftovers, and
#   images that ought to be the same bytes each time find a hidden file that no code of theirs
#   wrote; and whoever ships the runtime has to know that an identifier stays on disk.
#
# Output seen:
#   before: []
#   after:  ['.ses'] 2 lines, a time: True, an identifier: True
#   kept by the next process: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnxruntime==1.31.1 numpy==2.4.6
"$folder/venv/bin/python" - "$folder/empty" <<'EOF'
import os
import subprocess
import sys
import uuid
from pathlib import Path

folder = Path(sys.argv[1])
folder.mkdir()
environment = os.environ | {"TMPDIR": str(folder)}


def found() -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def imports() -> None:
    subprocess.run([sys.executable, "-c", "import onnxruntime"], env=environment, check=True)


print("before:", found())
assert found() == []
imports()
text = (folder / ".ses").read_text()
lines = text.split()
is_time, is_identifier = lines[0].isdigit(), str(uuid.UUID(lines[1])) == lines[1]
print("after: ", found(), len(lines), "lines, a time:", f"{is_time}, an identifier: {is_identifier}")
assert (found(), len(lines), is_time, is_identifier) == ([".ses"], 2, True, True)
imports()
kept = (folder / ".ses").read_text().split()[1] == lines[1]
print("kept by the next process:", kept)
assert kept
EOF
