"""A headless Chromium of this machine, and TensorBoard on loopback."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--window-size=1600,1200",
    # nothing is fetched but the pages under test
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SECONDS = 60.0  # within which a page has to show what it is waited for, also on a busy machine
ALL_TEXT = """
const texts = [];
const visit = (node) => {
    if (node.nodeType === Node.TEXT_NODE) texts.push(node.textContent);
    if (node.nodeName === 'SCRIPT' || node.nodeName === 'STYLE') return;
    if (node.shadowRoot) visit(node.shadowRoot);
    node.childNodes.forEach(visit);
};
visit(document.body);
return texts.join('').replace(/\\s+/g, ' ');
"""


class Page:
    """An open browser window, asked for what people would see in it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self._driver = driver

    def open(self, address: str) -> None:
        self._driver.get("about:blank")
        self._driver.get_log("browser")  # forgets what the page before left there
        self._driver.get(address)

    def text(self) -> str:
        """All text of the page, web components included."""
        return self._driver.execute_script(ALL_TEXT)

    def wait_for(self, *texts: str) -> None:
        """Until all of `texts` are on the page."""

        def shown(_: object) -> bool:
            there = self.text()
            return all(text in there for text in texts)

        try:
            WebDriverWait(self._driver, SECONDS, poll_frequency=0.1).until(shown)
        except TimeoutException:
            there = self.text()
            missing = [text for text in texts if text not in there]
            pytest.fail(f"the page does not show {missing}, but {there[:2000]} ...")

    def find(self, selector: str) -> list[dict[str, float]]:
        """Position and size of the elements that a CSS selector finds."""
        return [element.rect for element in self._driver.find_elements("css selector", selector)]

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self._driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options=options, service=Service(driver))
    yield Page(running)
    running.quit()


@pytest.fixture
def tensorboard(tmp_path: Path) -> Iterator[str]:
    """The address of a TensorBoard over tmp_path, on a free port."""
    server = [sys.executable, "-m", "tensorboard.main", "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen([*server, "--logdir", str(tmp_path)], stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        said = []
        for line in running.stderr:
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                yield found[0]
                break
        else:
            pytest.fail(f"TensorBoard did not start: {''.join(said)}")
        running.terminate()
