"""The page of `namm inspect` for a long text: how long it takes to make, its size, and its first paint in Chromium.

    python benchmarks/page.py                        # 8,192 tokens of the packaged prose
    python benchmarks/page.py --text report.txt

Needs selenium, chromium and chromedriver for the first paint, which is left out without them.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import namm
from namm.inspection import class_shares, save_report, token_classes
from namm.tasks import Document, packaged_prose, read_documents


def first_paint(page: Path) -> tuple[float, float] | None:
    """Seconds from navigation to the first paint of content, and until everything is shown and can be used."""
    driver, browser = shutil.which("chromedriver"), shutil.which("chromium")
    try:
        from selenium import webdriver
    except ImportError:
        return None
    if not driver or not browser:
        return None
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(argument)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        start = time.perf_counter()
        chrome.get(page.as_uri())
        while not chrome.execute_script("return document.body.dataset.ready"):
            time.sleep(0.02)
        ready = time.perf_counter() - start
        time.sleep(0.5)
        paint = chrome.execute_script("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
        return paint / 1000, ready
    finally:
        chrome.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--memory", default="smollm2-135m")
    parser.add_argument("--text", type=Path, help="in place of the packaged prose")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--device")
    arguments = parser.parse_args()
    model, tokenizer = namm.load_model(arguments.model, device=arguments.device)
    memory = namm.NAMM.from_pretrained(arguments.memory)
    texts = read_documents(arguments.text) if arguments.text else packaged_prose()
    document = Document("long.txt", "\n\n".join(text.text for text in texts), texts[0].kind)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        start = time.perf_counter()
        found = namm.inspect(model, tokenizer, document.text, memory, tokens=arguments.tokens)
        classes = token_classes(document, found.spans)
        save_report([found], page, classes=classes, shares=class_shares([(found, classes)], document.kind))
        print(
            f"{found.tokens} tokens: made in {time.perf_counter() - start:.1f} s, {page.stat().st_size / 2**20:.2f} MiB"
        )
        shown = first_paint(page)
        print("no Chromium here" if shown is None else f"first paint {shown[0]:.2f} s, usable after {shown[1]:.2f} s")


if __name__ == "__main__":
    main()
