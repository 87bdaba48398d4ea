"""Keys and values of few bits: what is kept is the same tokens, nearly the same numbers, and far fewer bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launches import Operations
from layers import Layers, random_tokens

from namm import NAMM, MemoryCache, NAMMConfig
from namm.cache.arithmetic import AttentionForm
from namm.cache.codes import BITS, BOUNDS, decode, encode, from_byte, group_of, hadamard, to_byte, turned
from namm.cache.packed import SINKS
from namm.cache.packing import Packing
from namm.policies import H2O, NAMMPolicy, Streaming
from namm.support.tensors import Column

MEMORY = NAMM(NAMMConfig(hidden=8, update_interval=16, window=8, hop=4, birth=True, key_value=True))

POLICIES = [NAMMPolicy(MEMORY, kept=0.4), H2O(0.3, 16), Streaming(12, 16)]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    tokens=st.integers(0, 9),
    width=st.sampled_from([2, 16, 64, 80, 96, 128]),
    bits=st.sampled_from(BITS),
    centre=st.sampled_from([0.0, 3.0]),
    size=st.sampled_from([0.0, 1e-3, 1.0, 300.0]),
    seed=st.integers(0, 99),
)
def test_a_number_comes_back_within_half_a_step_and_again_as_itself(tokens, width, bits, centre, size, seed):
    generator = torch.Generator().manual_seed(seed)
    x = centre + size * torch.randn(tokens, width, generator=generator)
    codes, bounds = encode(x, bits)
    assert codes.shape == (tokens, width * bits // 8) and codes.dtype == torch.uint8 and bounds.dtype == BOUNDS
    found = decode(codes, bounds, bits)
    low, high = bounds.float().unbind(-1)
    half = (high - low) / (2**bits - 1) / 2
    error = (found - x).unflatten(1, (-1, group_of(width))).abs().amax(-1)
    rounded = bounds.float().abs().amax(-1) * 2**-8  # the bounds' own rounding
    assert bool((error <= half * 1.01 + rounded + 1e-6).all())
    again = encode(found, bits)
    assert torch.equal(again[0], codes) and torch.equal(again[1], bounds)


def test_the_formula_against_float64() -> None:
    x = torch.tensor([[0.0, 1.0, 0.26, -0.5]], dtype=torch.float64)
    codes, bounds = encode(x.float(), 4)
    assert bounds.tolist() == [[[-0.5, 1.0]]]
    wanted = ((x + 0.5) / 1.5 * 15).round()
    assert wanted.tolist() == [[5, 15, 8, 0]]
    assert [int(codes[0, 0]) & 15, int(codes[0, 0]) >> 4, int(codes[0, 1]) & 15, int(codes[0, 1]) >> 4] == [5, 15, 8, 0]


def test_a_large_channel_costs_no_others_their_bits() -> None:
    """It would take all codes of its group."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(200, 64, generator=generator)
    keys[:, 5] = 100 + 20 * torch.randn(200, generator=generator)
    own = {"keys": keys, "values": keys.flip(0), "positions": torch.arange(200, dtype=torch.int32)}
    found = Packing(4).pack(own, [200], {}).column(0, "keys")
    others = torch.arange(64) != 5
    assert float((found - keys)[:, others].abs().mean()) < 0.2
    plain = decode(*encode(keys, 4), 4)
    assert float((plain - keys)[:, others].abs().mean()) > 0.7


def layers(policy, bits: int | None) -> Layers:
    return Layers(policy, "loops", AttentionForm(0.5), bits=bits)


@pytest.mark.parametrize(
    "policy", [NAMMPolicy(MEMORY, kept=0.4), H2O(0.3, 16), Streaming(12, 16)], ids=lambda p: p.name
)
@pytest.mark.parametrize("bits", BITS)
def test_what_is_decided_on_is_packed_and_stays_what_it_is(policy, bits) -> None:
    """Whatever is forgotten and however often: a token's numbers change once, when it is packed first."""
    generator = torch.Generator().manual_seed(1)
    packed = layers(policy, bits)
    first: dict[tuple[int, int, int], torch.Tensor] = {}
    for tokens in (40, 1, 7, 16, 33, 3, 20):
        packed.feed(random_tokens(2, 2, 2, tokens, 16, 2, generator))
        packed.held()
        for number, layer in enumerate(packed.layers):
            for row in layer.rows:
                for h in range(2):
                    own = row.store.head(h)
                    decided = own["positions"] < row.updated
                    for position, key in zip(own["positions"][decided].tolist(), own["keys"][decided], strict=True):
                        place = number, row.index * 2 + h, position
                        assert torch.equal(first.setdefault(place, key.clone()), key)
    store = packed.layers[0].rows[0].store
    assert store.held.bits == bits and store.since.lengths[0] == packed.layers[0].rows[0].fresh > 0


@pytest.mark.parametrize("bits", BITS)
def test_new_tokens_and_sinks_are_exact(bits) -> None:
    generator = torch.Generator().manual_seed(2)
    packed, exact = layers(Streaming(30, 16, sinks=SINKS), bits), layers(Streaming(30, 16, sinks=SINKS), None)
    for tokens in (48, 21):
        new = random_tokens(1, 2, 1, tokens, 16, 2, generator)
        packed.feed(new)
        exact.feed(new)
    for own, other in zip(packed.held(), exact.held(), strict=True):
        assert own["positions"].tolist() == other["positions"].tolist()
        assert torch.equal(own["keys"][:SINKS], other["keys"][:SINKS])
        assert torch.equal(own["values"][-5:], other["values"][-5:])
        assert not torch.equal(own["keys"], other["keys"])
        torch.testing.assert_close(own["keys"], other["keys"], atol=0.4 if bits == 4 else 0.03, rtol=0)


@torch.inference_mode()
def cache_of(model, ids, bits, **options) -> MemoryCache:
    cache = MemoryCache(model, NAMMPolicy(NAMM(NAMMConfig(hidden=8, update_interval=32)), kept=0.25), bits=bits)
    model(ids, past_key_values=cache, **options)
    cache.settle()
    return cache


def test_bytes_are_counted_from_storage_and_far_fewer(tiny, ids) -> None:
    model = tiny.to(torch.float32)
    stats = {bits: cache_of(model, ids, bits).stats() for bits in (None, 8, 4)}
    assert all(abs(each.kept_fraction - 0.25) < 0.02 and each.seen == (300,) for each in stats.values())
    assert all(each.full_bytes == stats[None].full_bytes for each in stats.values())
    assert stats[4].kv_bytes < stats[8].kv_bytes < 0.62 * stats[None].kv_bytes
    assert stats[4].kv_bytes == stats[4].logical_kv_bytes
    layer = cache_of(model, ids, 4).layers[0]
    held = layer.rows[0].store.held
    own = sum(column.untyped_storage().nbytes() for column in (*held.columns.values(), held.frame))
    assert layer.rows[0].store.nbytes() - layer.rows[0].store.since.nbytes() == own


@pytest.mark.parametrize("bits", BITS)
def test_a_model_says_nearly_the_same(wild, ids, bits) -> None:
    with torch.inference_mode():
        exact, packed = (wild(ids[:, :20], past_key_values=cache_of(wild, ids, each)).logits for each in (None, bits))
    spread = float(exact.std())
    assert 0 < float((exact - packed).abs().mean()) < (0.5 if bits == 4 else 0.1) * spread


@pytest.mark.parametrize("bits", BITS)
def test_packed_caches_fork_and_are_saved_as_they_are(wild, ids, tmp_path, bits) -> None:
    cache = cache_of(wild, ids, bits)
    cache.save(tmp_path)
    loaded, fork = MemoryCache.load(wild, tmp_path), cache.fork()
    assert loaded.bits == fork.bits == bits
    assert loaded.stats().kv_bytes == cache.stats().kv_bytes and fork.stats().shared_bytes > 0
    with torch.inference_mode():
        for start in (0, 9, 50):
            step = ids[:, start : start + 41]
            found = [wild(step, past_key_values=each).logits for each in (cache, loaded, fork)]
            assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    for each in (cache, loaded, fork):
        each.check()


def test_rows_may_be_padded_moved_and_hidden(wild, ids) -> None:
    mask = torch.ones(2, 150, dtype=torch.long)
    mask[1, :37] = 0
    batch = torch.stack([ids[0, :150], ids[0, 150:]])
    cache = cache_of(wild, batch, 8, attention_mask=mask)
    cache.batch_select_indices(torch.tensor([1, 0, 1]))
    hidden = torch.cat([mask[[1, 0, 1]], torch.ones(3, 40, dtype=torch.long)], dim=1)
    hidden[:, 60:70] = 0
    with torch.inference_mode():
        wild(ids[0, :40].expand(3, -1), past_key_values=cache, attention_mask=hidden)
    cache.settle()
    cache.check()
    assert [row.seen for row in cache.layers[0].rows] == [hidden[row].sum() for row in range(3)]


@pytest.mark.parametrize("width", [2, 6, 64, 80])
def test_turning_twice_is_nothing_and_lengths_stay(width) -> None:
    x = torch.randn(5, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned(turned(x)), x)
    torch.testing.assert_close(turned(x).norm(dim=1), x.norm(dim=1))
    block = width & -width
    matrix = hadamard(block, x.device).double()
    torch.testing.assert_close(matrix @ matrix, torch.eye(block, dtype=torch.float64), atol=1e-6, rtol=0)


def test_numbers_between_bounds_fit_into_bytes() -> None:
    column = Column((3,), torch.bfloat16, (-9.0, 0.0))
    x = torch.tensor([[-9.0, -4.4, 0.0], [-0.1, -20.0, 3.0]])
    found = from_byte(to_byte(x, column.bounds), column)
    assert found.dtype == torch.bfloat16 and torch.equal(to_byte(found, column.bounds), to_byte(x, column.bounds))
    torch.testing.assert_close(found.float(), x.clamp(-9, 0), atol=9 / 255 / 2 + 0.02, rtol=0)


def test_what_can_not_be_packed_is_refused(tiny) -> None:
    with pytest.raises(ValueError, match="bits must be one of 4, 8 or None, got 3"):
        MemoryCache(tiny, NAMMPolicy(MEMORY), bits=3)
    with pytest.raises(ValueError, match="odd width"):
        encode(torch.zeros(1, 3), 4)


def test_decoding_unpacks_with_few_operations(wild, ids) -> None:
    cache = cache_of(wild, ids, 4)
    with torch.inference_mode(), Operations() as counter:
        wild(ids[:, :1], past_key_values=cache)
    packed = counter.computed
    exact = cache_of(wild, ids, None)
    with torch.inference_mode(), Operations() as counter:
        wild(ids[:, :1], past_key_values=exact)
    assert packed <= counter.computed + 2 * 2 * 2 * 24  # layers, heads, keys and values
