"""Where no browser can be had, its checks are skipped by name."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.studio import in_browser


@pytest.mark.parametrize(("missing", "reason"), [("node", "no Node.js"), ("chromium", "no Chromium")])
def test_checks_are_skipped_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str, reason: str
) -> None:
    there = {"node", "npm", "chromium"} - {missing}
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in there else None)
    monkeypatch.setattr(sys, "argv", ["in_browser"])
    monkeypatch.delenv("CHROMIUM", raising=False)
    assert in_browser.main() == 0
    *names, told, counts = capsys.readouterr().out.splitlines()
    assert "skipped  two users at once get a head each, of their own photos" in names
    assert len(names) > 10
    assert reason in told
    assert counts == f"0 passed, 0 failed, {len(names)} skipped"


def test_the_browser_of_the_variable_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHROMIUM", str(tmp_path))
    assert in_browser._chromium() == str(tmp_path)
