"""Starts `mien studio` and drives its page in Chromium with browser.mjs.

Usage: python -m tests.studio.in_browser FOLDER_OF_NODE_MODULES [PICTURES [PART_OF_A_CHECKS_NAME]]
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(modules: str, pictures: str = "build/studio-pictures", part: str = "") -> int:
    """The exit code of the browser's script."""
    command = [sys.executable, "-m", "mien", "studio", "--port", "0", "--no-open", "--max-upload-mb", "5"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        address = next(word for word in server.stderr.readline().split() if word.startswith("http"))
        Path(pictures).mkdir(parents=True, exist_ok=True)
        script = ["node", str(HERE / "browser.mjs"), address, str(Path(modules).resolve()), pictures, part]
        return subprocess.run(script, timeout=900, check=False, env=os.environ).returncode
    finally:
        server.terminate()
        server.wait(20)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
