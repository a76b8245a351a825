"""A browser for all tests, and the pages that `make test-browser` wrote."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import Browser

PAGES = Path(os.environ["ATTRFLOW_PAGES"]).resolve()
# What people may look at.
SHOTS = PAGES / "screenshots"


@pytest.fixture(scope="session")
def window() -> Iterator[Browser]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        reason = "no chromium or chromedriver on the PATH: apt-get install chromium chromium-driver"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    SHOTS.mkdir(exist_ok=True)
    window = Browser(chromium, chromedriver)
    yield window
    window.close()


@pytest.fixture
def browser(window: Browser) -> Iterator[Browser]:
    """The browser as a test expects it."""
    window.media()
    window.log("browser"), window.log("performance")
    yield window
    window.chromium("Emulation.setScriptExecutionDisabled", value=False)
    window.chromium("Emulation.clearDeviceMetricsOverride")
