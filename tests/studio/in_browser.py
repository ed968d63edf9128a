"""Starts `mien studio`, drives its page in Chromium with browser.mjs, and compares its look with the baselines.

It installs what it needs: Chromium as Debian's package where it may (root, apt-get), Node.js packages from their
registry. Where Node.js or Chromium cannot be had it names the checks that it skips, and passes.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.studio import baselines

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LOOK = "the page looks as before"
_LONGEST_S = 2400.0
"""For all checks together. It ends what hangs, not what is slow."""


class NotHereError(Exception):
    """Something that the checks need cannot be had on this machine."""


def main() -> int:
    """The exit code: 0 also where the checks have to be skipped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", default="", help="part of a check's name; all without it")
    parser.add_argument("--modules", type=Path, default=Path("build/studio-browser"), help="folder of Node.js packages")
    parser.add_argument("--pictures", type=Path, default=Path("build/studio-pictures"), help="folder for screenshots")
    parser.add_argument("--renew", action="store_true", help="keep the present look as the baseline")
    options = parser.parse_args()
    scripts = "".join((HERE / script).read_text() for script in ("browser.mjs", "browser_people.mjs"))
    names: list[str] = re.findall(r'^ {2,4}async "(.+)"\(', scripts, re.MULTILINE)
    try:
        node, chromium = _node(), _chromium()
        _install(options.modules)
    except NotHereError as error:
        for name in names:
            print(f"skipped  {name}")
        print(f"The page was not tested in a browser: {error}\n0 passed, 0 failed, {len(names)} skipped")
        return 0
    shutil.rmtree(options.pictures, ignore_errors=True)
    options.pictures.mkdir(parents=True)
    with _studio() as address:
        script = [node, str(HERE / "browser.mjs"), address, str(options.modules.resolve()), str(options.pictures)]
        environment = {**os.environ, "CHROMIUM": chromium, "PYTHON": sys.executable}
        code = subprocess.run([*script, options.part], timeout=_LONGEST_S, check=False, env=environment).returncode
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"processor time of browser and server: {used.ru_utime + used.ru_stime:.0f} s")
    return code or _look(options.pictures, renew=options.renew)


def _look(pictures: Path, *, renew: bool) -> int:
    if not (pictures / baselines.LAYOUTS).is_file():  # this check was not among the chosen ones
        return 0
    if renew:
        baselines.renew(pictures)
        return 0
    found = baselines.differences(pictures)
    for difference in found:
        print(f"FAILED  {LOOK}: {difference}")
    if found:
        print(f"The screenshots are in {pictures}. If they are as they should be: make studio-baselines")
    return 1 if found else 0


def _node() -> str:
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        raise NotHereError("there is no Node.js with npm; install them.")
    return node


def _chromium() -> str:
    """The browser of the variable CHROMIUM, or of this system, which gets one where that can be done."""
    given = os.environ.get("CHROMIUM")
    if given:
        return given
    if not any(map(shutil.which, BROWSERS)) and shutil.which("apt-get") and os.geteuid() == 0:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
            subprocess.run(["apt-get", "--quiet=2", *command], check=False, env=environment)
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise NotHereError("there is no Chromium; install it, or name its file in the variable CHROMIUM.")
    return found


def _install(modules: Path) -> None:
    """The Node.js packages of package.json, in a folder of their own."""
    wanted, there = HERE / "package.json", modules / "package.json"
    if (modules / ".installed").is_file() and there.read_text() == wanted.read_text():
        return
    modules.mkdir(parents=True, exist_ok=True)
    shutil.copy(wanted, there)
    if subprocess.run(["npm", "ping"], check=False, capture_output=True).returncode:
        raise NotHereError("npm cannot reach its registry.")
    options = ["--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"]
    subprocess.run(["npm", "install", *options], check=True, cwd=modules)
    (modules / ".installed").touch()


@contextmanager
def _studio() -> Iterator[str]:
    """A running server; its address. No photo takes too long for it, however busy the machine is."""
    options = ["--port", "0", "--no-open", "--max-upload-mb", "5", "--seconds", str(_LONGEST_S)]
    server = subprocess.Popen([sys.executable, "-m", "mien", "studio", *options], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        yield next(word for word in server.stderr.readline().split() if word.startswith("http"))
    finally:
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    sys.exit(main())
