from __future__ import annotations

import os
import shutil

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line: a busy machine is no slower than its share

os.environ["TRITON_INTERPRET"] = "1"  # read where kernels are defined; all is on the CPU here, on any machine

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BatchEncoding, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def tiny() -> PreTrainedModel:
    """A random Llama with grouped heads, float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=200,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 200, (1, 300), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def wild() -> PreTrainedModel:
    """A random Llama whose weights are so large that it matters what is attended to, and where it stands."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=None,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


class Characters:
    """A tokenizer of bytes, for models of 260 tokens."""

    eos_token_id = 0
    pad_token_id = bos_token_id = None

    def __call__(
        self, text: str | list[str], return_tensors: str | None = None, add_special_tokens: bool = False
    ) -> BatchEncoding:
        if isinstance(text, list):
            return BatchEncoding({"input_ids": [list(one.encode()) for one in text]})
        tokens = list(text.encode())
        return BatchEncoding({"input_ids": torch.tensor([tokens]) if return_tensors else tokens})

    def decode(self, ids: torch.Tensor, skip_special_tokens: bool = False) -> str:
        return bytes(min(255, int(token)) for token in torch.as_tensor(ids).flatten()).decode("latin-1")


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a window, of the size that the test's module calls WINDOW."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no chromium and chromedriver here (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
    profile = tmp_path_factory.mktemp("profile")
    for argument in (*quiet, "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.add_argument(f"--window-size={request.module.WINDOW}")
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="session")
def characters() -> Characters:
    return Characters()


@pytest.fixture(scope="session")
def reader() -> PreTrainedModel:
    """A random Llama that reads `Characters`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=260,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def reader_folder(tmp_path_factory: pytest.TempPathFactory, reader: PreTrainedModel) -> Path:
    """`reader` and a tokenizer of bytes in a folder, for other processes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    bytewise.pre_tokenizer, bytewise.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("reader")
    reader.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token=alphabet[0]).save_pretrained(folder)
    return folder
