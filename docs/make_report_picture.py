"""The picture of the report's page in the README, as Chromium shows it, with a few verdicts.

python docs/make_report_picture.py output-report docs/report.png
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

SIZE_WH = (1300, 1060)
KEYS = "rwcmaroon\nbs"  # right; wrong; another item, maroon; bad mask; skip


def make_picture(report: Path, picture: Path) -> None:
    """Writes a PNG of a report's page."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("headless=new", "no-sandbox", "disable-gpu", f"window-size={SIZE_WH[0]},{SIZE_WH[1]}"):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get((report / "index.html").resolve().as_uri())
        loaded = (
            "return document.querySelectorAll('.cell').length && [...document.images].every(i => !i.src || i.complete)"
        )
        WebDriverWait(browser, 20).until(lambda _: browser.execute_script(loaded))
        for key in KEYS:
            browser.switch_to.active_element.send_keys(key)
        browser.execute_script("scrollTo(0, 0)")
        WebDriverWait(browser, 20).until(lambda _: len(browser.find_elements(By.CLASS_NAME, "verdict")) == 4)
        browser.save_screenshot(str(picture))
    finally:
        browser.quit()
    Image.open(picture).convert("RGB").save(picture, optimize=True)


if __name__ == "__main__":
    make_picture(*map(Path, sys.argv[1:3]))
