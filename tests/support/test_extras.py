from __future__ import annotations

import subprocess
import sys

import pytest

from namm.support.extras import need, require


def test_a_module_is_imported() -> None:
    assert need("json.decoder", "eval").JSONDecoder


@pytest.mark.fault(
    "C17", siblings="need() of the metrics, datasets, ray, lm_eval and matplotlib each had their own words"
)
def test_all_that_is_missing_is_named_at_once(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(ImportError, match=r"^this needs rouge-score and nowhere: pip install 'namm\[eval\]'$"):
        require(["json", "rouge_score.rouge_scorer", "nowhere.at.all", "nowhere"], "eval")


def test_asking_loads_nothing() -> None:
    code = (
        "import sys; from namm.support.extras import require; require(['wave'], 'eval'); print('wave' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_package_that_is_broken_says_so_itself(tmp_path, monkeypatch) -> None:
    (tmp_path / "broken_one.py").write_text("import nowhere_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="nowhere_at_all"):
        need("broken_one", "eval")
