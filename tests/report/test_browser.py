"""The page in headless Chromium: no error, no request, tables sort and filter, a missing cell shows as missing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from made_records import evaluation, leave_one_out, make_record, miniatures

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
const long = document.getElementById("toy-accuracy");
const box = long.closest(".scroll").previousElementSibling;
const left = (words) => {
  box.querySelector("input").value = words;
  box.querySelector("input").dispatchEvent(new Event("input"));
  const shown = [...long.tBodies[0].rows].filter((r) => !r.hidden).map((r) => r.cells[0].textContent.trim());
  return [shown.length, shown[0] ?? "", box.querySelector("[role=status]").textContent];
};
const filtered = [left("ROW 20"), left("no such"), left("")];
const found = {
  filtered, wrong, before, first, second,
  requests: performance.getEntriesByType("resource").map((e) => e.name).filter((n) => !n.startsWith("data:")),
  missing: [...table.querySelectorAll("td.missing")].map((c) => c.textContent.trim()),
};
document.body.innerHTML = "<pre id=found></pre>";
document.getElementById("found").textContent = JSON.stringify(found);
</script>"""


def test_a_page_in_a_browser(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    many = [
        make_record([evaluation("photo", "test", 0.9), evaluation("sketch", "all", 0.5 + n / 100)],
                    targets=("sketch",), seed=0, label=f"row {n}", shots=n)
        for n in range(10, 31)
    ]  # fmt: skip
    for record in [*leave_one_out()[:-1], *miniatures(), *many]:
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
    assert found["filtered"] == [[1, "row 20", "1 of 21"], [0, "", "0 of 21"], [21, "row 30", ""]]
    assert found["missing"] == ["2/3", ""]  # sketch lacks a seed, and so the mean beside it is empty
