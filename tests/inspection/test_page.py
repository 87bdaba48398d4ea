"""The page in a real browser; skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inspected import TEXT

from namm import inspect
from namm.inspection import save_report, token_classes
from namm.policies import Streaming
from namm.tasks import Document

selenium = pytest.importorskip("selenium")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

WINDOW = "1400,900"  # of `browser`


def opened(browser: Any, page: Path) -> None:
    browser.get(page.as_uri())
    WebDriverWait(browser, 30).until(lambda driver: driver.execute_script("return document.body.dataset.ready"))


@pytest.fixture
def page(browser, tmp_path, remembered, by_rule) -> Any:
    classes = token_classes(Document("a.txt", TEXT, "prose"), remembered.spans)
    save_report([remembered, by_rule], tmp_path / "page.html", title="<i>a</i>", classes=classes)
    opened(browser, tmp_path / "page.html")
    return browser


def words(page: Any, pane: int = 0) -> list[Any]:
    return page.find_elements(By.CLASS_NAME, "text")[pane].find_elements(By.TAG_NAME, "span")


def shades(page: Any, pane: int = 0) -> list[str]:
    script = "return [...document.querySelectorAll('.text')[arguments[0]].children].map(word => word.classList[0])"
    return page.execute_script(script, pane)


def texts(page: Any) -> list[str]:
    return page.execute_script("return [...document.querySelectorAll('.text')].map(text => text.textContent)")


def facts(page: Any) -> dict[str, str]:
    names, values = (page.find_elements(By.CSS_SELECTOR, f"#facts {tag}") for tag in ("dt", "dd"))
    return {name.text: value.text for name, value in zip(names, values, strict=True)}


def expected(found: Any, update: int, heads: Any = slice(None)) -> list[str]:
    """The shade of each token: how many heads of nine, by the root of their share."""
    held = found.held(update).reshape(-1, found.tokens)[heads]
    held = held.reshape(-1, found.tokens)
    levels = [f"k{int(-(-9 * share**0.5 // 1))}" for share in held.mean(0)]
    return levels[: found.updates[update]] + ["u"] * (found.tokens - found.updates[update])


def test_the_text_is_shown_as_it_is(page) -> None:
    assert texts(page) == [TEXT, TEXT], "tags, emoji, tabs and right-to-left letters"
    assert page.title == page.find_element(By.TAG_NAME, "h1").text == "<i>a</i>"
    assert not [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]


def test_the_slider_goes_through_time(page, remembered, by_rule) -> None:
    last = len(remembered.updates) - 1
    assert shades(page) == expected(remembered, last) and shades(page, 1) == expected(by_rule, last)
    slider = page.find_element(By.ID, "time")
    slider.send_keys(Keys.HOME)
    assert shades(page) == expected(remembered, 0) and "u" in shades(page)
    assert page.find_element(By.ID, "when").text == f"update 1 of {last + 1}: 64 tokens read"
    slider.send_keys(Keys.ARROW_RIGHT)
    assert shades(page) == expected(remembered, 1)


def test_the_pickers_choose_layer_and_head(page, remembered) -> None:
    last = len(remembered.updates) - 1
    Select(page.find_element(By.ID, "layer")).select_by_visible_text("1")
    assert shades(page) == expected(remembered, last, slice(2, 4))
    Select(page.find_element(By.ID, "head")).select_by_visible_text("0")
    assert shades(page) == expected(remembered, last, 2)
    assert set(shades(page)) == {"k0", "k9"}
    cells = page.find_elements(By.CSS_SELECTOR, "#maps .grid")[0].find_elements(By.TAG_NAME, "button")
    pressed = [cell.get_attribute("aria-label") for cell in cells if cell.get_attribute("aria-pressed") == "true"]
    assert pressed == [f"layer 1, head 0: {100 * remembered.kept_by_head()[1, 0]:.1f}%"]
    cells[0].click()  # the map is a picker too
    assert shades(page) == expected(remembered, last, 0)
    assert Select(page.find_element(By.ID, "layer")).first_selected_option.text == "0"
    cells[0].click()
    assert shades(page) == expected(remembered, last)


def test_a_token_tells_about_itself(page, remembered) -> None:
    assert page.find_element(By.ID, "none").is_displayed()
    ActionChains(page).move_to_element(words(page)[7]).perform()
    told = facts(page)
    assert told["position"] == "7" and told["class"] == "function word"
    assert told["held by, namm"] == f"{remembered.held()[..., 7].sum()} of 4 heads"
    assert float(told["last score, namm"]) == pytest.approx(remembered.scores[..., 7].mean(), abs=0.02)
    assert len(page.find_elements(By.CSS_SELECTOR, "#waves rect")) == 17
    ActionChains(page).move_to_element(words(page)[9]).perform()
    assert facts(page)["position"] == "9"
    ActionChains(page).move_to_element(page.find_element(By.TAG_NAME, "h1")).perform()
    assert page.find_element(By.ID, "none").is_displayed(), "looking is not choosing"


def test_the_keyboard_is_enough(page) -> None:
    text = page.find_elements(By.CLASS_NAME, "text")[0]
    text.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert facts(page)["position"] == "2" and "chosen" in words(page)[2].get_attribute("class")
    text.send_keys(Keys.ARROW_LEFT)
    assert facts(page)["position"] == "1"
    text.send_keys(Keys.ESCAPE)
    assert page.find_element(By.ID, "none").is_displayed()
    cells = page.find_elements(By.CSS_SELECTOR, "#maps .grid")[0].find_elements(By.TAG_NAME, "button")
    cells[0].send_keys(Keys.ARROW_DOWN)
    assert page.switch_to.active_element.get_attribute("aria-label").startswith("layer 0, head 1")
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert Select(page.find_element(By.ID, "head")).first_selected_option.text == "1"


def test_a_class_is_underlined(page, remembered) -> None:
    Select(page.find_element(By.ID, "mark")).select_by_visible_text("punctuation")
    marked = [word.text for word in page.find_elements(By.CSS_SELECTOR, ".text:first-of-type .marked")]
    assert marked and set("".join(marked)) <= set("<>/&.{}!-😀")


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_sticks_out(page, width) -> None:
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 800}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_line_of_ten_thousand_letters(browser, loaded, tmp_path) -> None:
    text = "x" * 10_000
    found = inspect(*loaded, text, Streaming(0.25, 1024))
    save_report([found], tmp_path / "long.html")
    opened(browser, tmp_path / "long.html")
    assert texts(browser) == [text]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 1400
    assert not browser.find_element(By.ID, "marking").is_displayed(), "there are no classes to underline"
