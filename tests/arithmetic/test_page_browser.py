"""report.html in a real browser: no error on its console, every section visible, nothing wider than the window.

Needs a Chromium: on the PATH, or named by the variable CHROMIUM. The page is copied with two probes around its own
script: the first collects errors, the last measures what was laid out and writes it where ``--dump-dom`` finds it.
"""

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from run_folders import record, write_run

from diagnostics.comparison.compare import compare
from diagnostics.page.run_page import write_run_page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: install one, or name its program in the variable CHROMIUM"
)

COLLECT = """<script>
window.found = [];
for (const kind of ["error", "unhandledrejection", "securitypolicyviolation"])
  window.addEventListener(kind, (event) => {
    found.push(kind + ": " + (event.message || event.reason || event.blockedURI));
  });
console.error = console.warn = (...words) => found.push("console: " + words.join(" "));
</script>"""
MEASURE = """<script>
window.addEventListener("load", () => {
  const box = (node) => { const r = node.getBoundingClientRect(); return [r.width, r.height]; };
  document.querySelector("[data-tip]").dispatchEvent(new MouseEvent("click", {bubbles: true}));
  const probe = document.createElement("pre");
  probe.id = "probe";
  probe.textContent = JSON.stringify({
    found,
    sections: Object.fromEntries([...document.querySelectorAll("section")].map((s) => [s.id, box(s)])),
    charts: [...document.querySelectorAll("svg.chart")].map(box),
    buttons: [...document.querySelectorAll(".copy")].map(box),
    tip: document.querySelector(".tip").textContent,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    ground: getComputedStyle(document.body).backgroundColor,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  });
  document.body.append(probe);
});
</script>"""


def probe(page: Path, width: int, *, dark: bool = False) -> dict[str, Any]:
    """What the browser laid out."""
    assert CHROMIUM is not None
    text = page.read_text(encoding="utf-8")
    copy = page.with_name("probed.html")
    copy.write_text(text.replace("<title>", f"{COLLECT}<title>", 1).replace("</body>", f"{MEASURE}</body>"), "utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    command += [f"--user-data-dir={page.parent / 'profile'}", f"--window-size={width},900"]
    command += ["--blink-settings=preferredColorScheme=0"] * dark
    done = subprocess.run([*command, copy.as_uri()], capture_output=True, text=True, check=False, timeout=120)
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, flags=re.S)
    assert found, done.stderr[-2000:]
    values: dict[str, Any] = json.loads(unescape(found[1]))
    return values


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    folders = [write_run(root / "a", [20] * 32), write_run(root / "b", [10, 10, 80] + [10] * 29, 11.0)]
    compare(folders, root / "out")
    run = write_run_page(folders[1], record(), ["--base_model", "some/model"], [])
    return {"run": run, "comparison": root / "out" / "report.html"}


@needs_browser
@pytest.mark.parametrize("name", ["run", "comparison"])
@pytest.mark.parametrize("width", [390, 1280])
def test_sections_are_visible_and_the_console_is_silent(pages: dict[str, Path], name: str, width: int) -> None:
    seen = probe(pages[name], width)
    assert seen["found"] == []
    assert {"removed", "cost", "next"} <= set(seen["sections"])
    for box in [*seen["sections"].values(), *seen["charts"], *seen["buttons"]]:
        assert min(box) > 20
    assert seen["tip"].endswith(("removed", "extreme", "channels", "KV heads", "nats per token"))
    assert seen["overflow"] <= 0


@needs_browser
def test_both_themes(pages: dict[str, Path]) -> None:
    light, dark = probe(pages["run"], 1280), probe(pages["run"], 1280, dark=True)
    assert (light["dark"], dark["dark"]) == (False, True)
    assert light["ground"] != dark["ground"]
