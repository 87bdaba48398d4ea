"""The page of `namm inspect` for a long text: how long it takes to make, its size, and its first paint in Chromium.

    python benchmarks/page.py                        # 8,192 tokens of the packaged prose
    python benchmarks/page.py --text report.txt
    python benchmarks/page.py --picture docs/images/page.png    # the picture of the README

Needs selenium, chromium and chromedriver for first paint and picture.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import Measurements, Row, load, made_with, parser

import namm
from namm.inspection import class_shares, save_report, token_classes
from namm.tasks import Document, packaged_prose, read_documents

PICTURE = (1180, 760)  # pixels


def browser() -> Any:
    """Chromium without a window, or None where there is none."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    try:
        from selenium import webdriver
    except ImportError:
        return None
    if not driver or not chromium:
        return None
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(argument)
    options.add_argument(f"--window-size={PICTURE[0]},{PICTURE[1]}")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def show(chrome: Any, page: Path) -> Row:
    """Seconds from navigation to the first paint of content, and until everything is shown and can be used."""
    start = time.perf_counter()
    chrome.get(page.as_uri())
    while not chrome.execute_script("return document.body.dataset.ready"):
        time.sleep(0.02)
    ready = time.perf_counter() - start
    time.sleep(0.5)
    paint = chrome.execute_script("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    return {"first_paint_seconds": paint / 1000, "usable_seconds": ready}


def take(chrome: Any, picture: Path) -> None:
    """A picture of what the browser shows, in few colours, for fewer bytes."""
    from PIL import Image

    chrome.save_screenshot(str(picture))
    with Image.open(picture) as shown:
        few = shown.convert("RGB").quantize(160, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(picture, optimize=True)


def main() -> None:
    options = parser(__doc__, "page")
    options.add_argument("--text", type=Path, help="in place of the packaged prose")
    options.add_argument("--tokens", type=int, default=8192)
    options.add_argument("--picture", type=Path, help="write a picture of the page, and no measurement")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.tokens = 512
    setup = load(arguments)
    texts = read_documents(arguments.text) if arguments.text else packaged_prose()
    document = Document("long.txt", "\n\n".join(text.text for text in texts), texts[0].kind)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        start = time.perf_counter()
        found = namm.inspect(setup.model, setup.tokenizer, document.text, setup.memory, tokens=arguments.tokens)
        classes = token_classes(document, found.spans)
        save_report(
            [found], page, title=texts[0].name, classes=classes, shares=class_shares([(found, classes)], document.kind)
        )
        row = {"seconds": time.perf_counter() - start, "bytes": page.stat().st_size}
        chrome = browser()
        if chrome is not None:
            try:
                row |= show(chrome, page)
                if arguments.picture:
                    take(chrome, arguments.picture)
                    return
            finally:
                chrome.quit()
        if arguments.picture:
            raise SystemExit("a picture needs selenium, chromium and chromedriver")
    results = Measurements(arguments, made_with(arguments, setup))
    results.row(lambda: row, tokens=found.tokens)
    results.write()


if __name__ == "__main__":
    main()
