"""The page in headless Chromium: no error, no request, tables sort and filter, a missing cell shows as missing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from made_records import leave_one_out, miniatures

from clipdg.report.page import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

BEFORE = "<script>window.wrong = []; addEventListener('error', (e) => wrong.push(String(e.message)));</script>"
AFTER = """<script>
const table = document.getElementById("pacs-accuracy");
const names = () => [...table.tBodies[0].rows].map((r) => r.cells[0].textContent.trim());
const before = names();
table.tHead.rows[0].cells[0].querySelector("button").click();
const first = names();
table.tHead.rows[0].cells[0].querySelector("button").click();
const second = names();
const found = {
  wrong, before, first, second,
  requests: performance.getEntriesByType("resource").map((e) => e.name).filter((n) => !n.startsWith("data:")),
  missing: [...table.querySelectorAll("td.missing")].map((c) => c.textContent.trim()),
};
document.body.innerHTML = "<pre id=found></pre>";
document.getElementById("found").textContent = JSON.stringify(found);
</script>"""


def test_a_page_in_a_browser(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for record in [*leave_one_out()[:-1], *miniatures()]:
        assert record.publish(folder)
    page = write_report([folder], tmp_path / "out").path
    page.write_text(page.read_text().replace("<head>", f"<head>{BEFORE}").replace("</body>", f"{AFTER}</body>"))
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert match, done.stderr[-2000:]
    found = json.loads(match[1].replace("&quot;", '"').replace("&amp;", "&"))
    assert found["wrong"] == []
    assert found["requests"] == []
    assert (found["first"], found["second"]) == (["coop", "zero_shot"], ["zero_shot", "coop"])
    assert found["missing"] == ["2/3", ""]  # sketch lacks a seed, and so the mean beside it is empty
