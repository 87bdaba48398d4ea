"""The server's page in a real browser; skipped where there is none."""

from __future__ import annotations

import time
from typing import Any

import pytest
from served import Address

selenium = pytest.importorskip("selenium")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

WINDOW = "1200,1400"  # of `browser`
TEXT = "To be, or <b>not</b> to be, that is the question: whether 'tis n\u00f6bler. " * 3


class Page:
    """The page of a server."""

    def __init__(self, browser: Any, server: Address) -> None:
        self.browser = browser
        browser.get(server.url)
        self.wait(lambda: browser.execute_script("return document.body.dataset.ready"))

    def wait(self, true: Any) -> None:
        WebDriverWait(self.browser, 30).until(lambda _: true())

    def at(self, id: str) -> Any:
        return self.browser.find_element(By.ID, id)

    def read(self, text: str, name: str) -> None:
        self.browser.execute_script("document.getElementById('text').value = arguments[0]", text)
        self.at("name").clear()
        self.at("name").send_keys(name)
        self.at("read").click()
        self.wait(lambda: self.at("read").is_enabled())

    def shades(self) -> tuple[str, list[str]]:
        script = "return [...document.querySelectorAll('#shades span')].map(word => [word.textContent, word.className])"
        words = self.browser.execute_script(script)
        return "".join(word for word, _ in words), [shade for _, shade in words]

    def documents(self) -> list[str]:
        return [option.text for option in Select(self.at("documents")).options]


def test_a_text_is_read_shaded_asked_and_deleted(browser, serve) -> None:
    server = serve()
    page = Page(browser, server)
    assert page.at("model").text == "tiny" and not page.at("shown").is_displayed() and not page.at("ask").is_enabled()
    page.read(TEXT, "<i>Hamlet</i>")
    (card,) = server.call("GET", "/v1/documents").json()["data"]
    assert page.documents() == [f"<i>Hamlet</i> ({card['tokens']} tokens)"]
    shown = server.call("GET", f"/v1/documents/{card['id']}/tokens").json()
    text, shades = page.shades()
    assert text == "<user>" + TEXT, "as it is, tags and all"
    wanted = [f"k{int(-(-9 * (held / shown['heads']) ** 0.5 // 1))}" for held in shown["held"]]
    assert shades == wanted and {"k0", "k9"} <= set(shades)
    assert page.at("summary").text.startswith(f"{100 * card['kept_fraction']:.1f}% of its")

    page.at("question").send_keys("Why?")
    page.at("ask").click()
    page.wait(lambda: page.at("usage").text and page.at("ask").is_enabled())
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Why?"}], "document": card["id"]}
    answer = server.call("POST", "/v1/chat/completions", json=asked | {"temperature": 0}).json()
    said = browser.execute_script("return document.getElementById('answer').textContent")
    assert said == answer["choices"][0]["message"]["content"]
    assert f"{card['tokens']} of which were not read again" in page.at("usage").text

    page.read("y" * 90, "other")
    assert len(page.documents()) == 2 and page.shades()[0] == "<user>" + "y" * 90
    page.at("delete").click()
    page.wait(lambda: len(page.documents()) == 1)
    page.wait(lambda: page.shades()[0] == "<user>" + TEXT)
    assert not [
        entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE" and "favicon" not in str(entry)
    ]


def test_what_goes_wrong_is_said(browser, serve) -> None:
    server = serve(tokens=200, keys=("secret",))
    page = Page(browser, server)
    assert "a valid API key is needed" in page.at("error").text
    browser.execute_script("document.querySelector('details').open = true")
    page.at("key").send_keys("secret")
    page.at("text").click()
    page.wait(lambda: page.at("model").text == "tiny")
    page.wait(lambda: not page.at("error").is_displayed())
    page.read("y" * 300, "long")
    assert "are more than the 200" in page.at("error").text
    page.read("", "nothing")
    assert page.at("error").is_displayed() and page.documents() == []


def test_an_answer_can_be_stopped(browser, serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    page = Page(browser, server)
    page.read(TEXT, "Hamlet")
    turn = server.engine.scheduler.turn
    monkeypatch.setattr(server.engine.scheduler, "turn", lambda: (time.sleep(0.1), turn()))  # 256 tokens take a while
    page.at("question").send_keys("Why?")
    page.at("ask").click()
    page.wait(lambda: page.at("answer").text)
    page.at("stop").click()
    page.wait(lambda: not server.engine.busy)
    assert not page.at("error").is_displayed() and page.at("ask").is_enabled()
    assert 'outcome="cancelled"} 1.0' in server.call("GET", "/metrics").text


def test_nothing_comes_from_elsewhere(serve) -> None:
    page = serve().call("GET", "/")
    assert "http" not in page.text and "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_sticks_out(browser, serve, width: int) -> None:
    page = Page(browser, serve())
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 800}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.read("x" * 300, "n" * 200)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
