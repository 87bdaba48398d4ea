from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from namm.cli import app
from namm.cli.plan import tokens_of

runner = CliRunner()


def test_a_table_and_the_same_as_json() -> None:
    result = runner.invoke(app, ["plan", "meta-llama-3-8b", "--context", "128k", "--gpu", "24", "--kept", "0.25"])
    assert result.exit_code == 0, result.output
    assert (
        "131,072 tokens, batch 1" in result.output
        and "16.00" in result.output
        and "15.0 GiB of weights" in result.output
    )
    arguments = ["plan", "meta-llama-3-8b", "--context", "128k", "--gpu", "24", "--kept", "0.25", "--json"]
    found = json.loads(runner.invoke(app, arguments).output)
    full, kept = found["caches"]
    assert full["size"] == 2**34 and kept["size"] < 0.31 * full["size"]
    assert full["longest"] < found["context"] < kept["longest"], "with a quarter kept it fits"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--context", "many"], "'many' is no number of tokens"),
        (["--context", "0"], "'0' is no number of tokens"),
        (["--kept", "2"], "fractions kept lie in (0, 1]"),
        (["--memory", "nothing"], "no memory 'nothing'"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments: list[str], message: str) -> None:
    result = runner.invoke(app, ["plan", "meta-llama-3-8b", *arguments])
    assert result.exit_code == 1 and message in result.output.replace("\n", " ")


def test_tokens() -> None:
    assert [tokens_of(text) for text in ("8192", "128k", "1M")] == [8192, 131_072, 1_048_576]
