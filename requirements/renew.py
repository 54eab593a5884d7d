"""Writes constraints.txt: the newest versions that setup.py, its extras and pyproject.toml's overrides allow together,
for every Python and platform at once. Run by `make constraints`; prints what changed.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILE = HERE / "constraints.txt"
HEADER = "# What `make setup` installs. Made by `make constraints`; the suite is run before a new one is kept.\n"
COMPILE = [
    *(str(Path(sys.executable).with_name("uv")), "pip", "compile", "setup.py", "--all-extras"),
    *("--universal", "--python-version", "3.10", "--upgrade", "--no-header", "--no-annotate", "--no-emit-index-url"),
    *("--no-emit-find-links", "--quiet"),
]


def lines(text: str) -> set[str]:
    return {line for line in text.splitlines() if line and not line.startswith("#")}


def main() -> int:
    before = FILE.read_text() if FILE.exists() else ""
    done = subprocess.run(COMPILE, cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return done.returncode
    found = sorted(lines(done.stdout))
    if any("==" not in line or "://" in line for line in found):
        print(f"error: more than names and versions: {[line for line in found if '==' not in line]}", file=sys.stderr)
        return 1
    FILE.write_text(HEADER + "\n".join(found) + "\n")
    changed = lines(before) ^ set(found)
    for line in sorted(changed):
        print("+" if line in found else "-", line)
    print(f"{FILE.name}: {len(found)} versions, {len(changed)} lines changed; now: make setup test")
    return 0


if __name__ == "__main__":
    sys.exit(main())
