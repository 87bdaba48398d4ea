"""From what is known of tokens to their scores (docs/mathematics.md, 5 to 8), of the oldest `asked` of each segment."""

import triton
import triton.language as tl

NOTHING = tl.constexpr(-1e30)
TURN = tl.constexpr(6.283185307179586)
LOG_FLOOR, NORM_FLOOR, SPREAD_FLOOR = tl.constexpr(1e-6), tl.constexpr(1e-7), tl.constexpr(1e-3)
SINKS, LEAST, BOUND = tl.constexpr(4), tl.constexpr(8), tl.constexpr(6.0)


@triton.jit
def sums(
    held_keys,
    held_values,
    records,
    table,
    asked,
    into,
    WIDTH: tl.constexpr,
    VALUE: tl.constexpr,
    SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sums of keys and values of `SLOTS` tokens each, into ``[segments, pieces, 2, COLUMNS]``."""
    segment = tl.program_id(0)
    index = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
    column = tl.arange(0, COLUMNS)
    slot = (tl.load(table + segment) + index).to(tl.int64) * records
    held = (index < tl.load(asked + segment))[:, None]
    keys = tl.load(held_keys + slot[:, None] + column[None, :], mask=held & (column < WIDTH)[None, :], other=0.0)
    values = tl.load(held_values + slot[:, None] + column[None, :], mask=held & (column < VALUE)[None, :], other=0.0)
    at = into + (segment * tl.num_programs(1) + tl.program_id(1)) * 2 * COLUMNS + column
    tl.store(at, tl.sum(keys.to(tl.float32), 0))
    tl.store(at + COLUMNS, tl.sum(values.to(tl.float32), 0))


@triton.jit
def known(
    held_keys,
    held_values,
    records,
    state,
    state_records,
    births,
    birth_records,
    table,
    asked,
    summed,
    pieces,
    found,
    levels,
    WIDTH: tl.constexpr,
    VALUE: tl.constexpr,
    SPECTRAL: tl.constexpr,
    BIRTH: tl.constexpr,
    OBSERVED: tl.constexpr,
    LOG: tl.constexpr,
    KEY_VALUE: tl.constexpr,
    STANDARDISED: tl.constexpr,
    SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """What is observed of every token, ``found [slots, OBSERVED]``; of the others than the first four, by pieces, mean
    and sum of squared deviations, ``levels [segments, pieces, 2, FEATURES]``."""
    segment = tl.program_id(0)
    tokens = tl.load(asked + segment)
    index = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
    held = index < tokens
    slot = (tl.load(table + segment) + index).to(tl.int64)
    feature = tl.arange(0, FEATURES)
    mask = held[:, None] & (feature < SPECTRAL)[None, :]
    seen = tl.load(state + slot[:, None] * state_records + feature[None, :], mask=mask, other=0.0).to(tl.float32)
    if LOG:
        seen = tl.where(mask, tl.log(seen + LOG_FLOOR), 0.0)
    if BIRTH > 0:
        mask = held[:, None] & ((feature >= SPECTRAL) & (feature < SPECTRAL + BIRTH))[None, :]
        at = births + slot[:, None] * birth_records + (feature - SPECTRAL)[None, :]
        seen += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if KEY_VALUE:
        column = tl.arange(0, COLUMNS)
        mean_key, mean_value = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
        for piece in range(0, pieces):
            sums_of = summed + (segment * pieces + piece) * 2 * COLUMNS + column
            mean_key += tl.load(sums_of)
            mean_value += tl.load(sums_of + COLUMNS)
        count = tl.maximum(tokens, 1).to(tl.float32)
        mean_key, mean_value = mean_key / count, mean_value / count
        mean_key = mean_key / tl.maximum(tl.sqrt(tl.sum(mean_key * mean_key, 0)), 1e-12)
        at = slot[:, None] * records + column[None, :]
        keys = tl.load(held_keys + at, mask=held[:, None] & (column < WIDTH)[None, :], other=0.0).to(tl.float32)
        given = held[:, None] & (column < VALUE)[None, :]
        values = tl.load(held_values + at, mask=given, other=0.0).to(tl.float32)
        key_norm = tl.maximum(tl.sqrt(tl.sum(keys * keys, 1)), LOG_FLOOR)
        value_norm = tl.maximum(tl.sqrt(tl.sum(values * values, 1)), LOG_FLOOR)
        apart = tl.where(given, values - mean_value[None, :], 0.0)
        apart_norm = tl.maximum(tl.sqrt(tl.sum(apart * apart, 1)), LOG_FLOOR)
        alike = tl.sum(keys * mean_key[None, :], 1) / key_norm
        own = feature - (SPECTRAL + BIRTH)
        seen += tl.where((own == 0)[None, :], tl.log(value_norm)[:, None], 0.0)
        seen += tl.where((own == 1)[None, :], tl.log(key_norm)[:, None], 0.0)
        seen += tl.where((own == 2)[None, :], tl.log(apart_norm)[:, None], 0.0)
        seen += tl.where((own == 3)[None, :], alike[:, None], 0.0)
    known_of = held[:, None] & (feature < OBSERVED)[None, :]
    tl.store(found + slot[:, None] * OBSERVED + feature[None, :], seen, mask=known_of)
    if STANDARDISED:
        sinks = tl.where(tokens >= SINKS + LEAST, SINKS, 0)
        others = held & (index >= sinks)
        first = tl.maximum(tl.program_id(1) * SLOTS, sinks)
        # less one of them: what is the same for all is exactly so
        pivot = tl.sum(tl.where((index == first)[:, None], seen, 0.0), 0)
        apart = tl.where(others[:, None], seen - pivot[None, :], 0.0)
        count = tl.maximum(tl.sum(others.to(tl.float32), 0), 1.0)
        mean = tl.sum(apart, 0) / count
        apart = tl.where(others[:, None], apart - mean[None, :], 0.0)
        at = levels + (segment * tl.num_programs(1) + tl.program_id(1)) * 2 * FEATURES + feature
        tl.store(at, pivot + mean)
        tl.store(at + FEATURES, tl.sum(apart * apart, 0))


@triton.jit
def project(
    found,
    levels,
    pieces,
    held_positions,
    position_records,
    table,
    asked,
    frequencies,
    mean,
    variance,
    weight,
    bias,
    features,
    projected,
    OBSERVED: tl.constexpr,
    STANDARDISED: tl.constexpr,
    NORMALISED: tl.constexpr,
    PIECE: tl.constexpr,
    PADDED: tl.constexpr,
    SEEN: tl.constexpr,
    HIDDEN: tl.constexpr,
    SLOTS: tl.constexpr,
    FEATURES: tl.constexpr,
    INNER: tl.constexpr,
):
    """What the network sees, ``features [slots, SEEN]``; its queries, keys and values, ``projected [slots, HIDDEN]``.

    The first eight features are sines and cosines of the age.
    """
    segment = tl.program_id(0)
    tokens, start = tl.load(asked + segment), tl.load(table + segment)
    index = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
    held = index < tokens
    slot = (start + index).to(tl.int64)
    feature = tl.arange(0, FEATURES)
    newest = tl.load(held_positions + (start + tokens - 1).to(tl.int64) * position_records, mask=tokens > 0, other=0)
    position = tl.load(held_positions + slot * position_records, mask=held, other=0)
    turns = (newest - position).to(tl.float64)[:, None] * tl.load(frequencies + feature % 4)[None, :] / TURN
    turns += tl.where(feature < 4, 0.0, 0.25)[None, :]  # a cosine is the sine of a quarter turn more
    angle = (turns - tl.floor(turns + 0.5)).to(tl.float32)
    angle = tl.where(angle > 0.25, 0.5 - angle, tl.where(angle < -0.25, -0.5 - angle, angle)) * TURN
    square = angle * angle
    age = 1.0 - square / 156.0  # its series, since a sine for any angle takes memory
    age = 1.0 - square / 110.0 * age
    age = 1.0 - square / 72.0 * age
    age = 1.0 - square / 42.0 * age
    age = 1.0 - square / 20.0 * age
    age = angle * (1.0 - square / 6.0 * age)
    source = tl.where(feature < 8, 0, (feature - 8) % OBSERVED)
    told = (feature >= 8) & (feature < SEEN)
    at = found + slot[:, None] * OBSERVED + source[None, :]
    seen = tl.load(at, mask=held[:, None] & told[None, :], other=0.0)
    centre, scale = tl.load(mean + source), tl.maximum(tl.sqrt(tl.load(variance + source)), NORM_FLOOR)
    if STANDARDISED:
        sinks = tl.where(tokens >= SINKS + LEAST, SINKS, 0)
        total = tl.maximum(tokens - sinks, 1).to(tl.float32)
        at = levels + segment * pieces * 2 * PADDED + source
        pivot = tl.load(at)
        level, squares = tl.zeros([FEATURES], tl.float32), tl.zeros([FEATURES], tl.float32)
        for piece in range(0, pieces):
            first = tl.maximum(piece * PIECE, sinks)
            count = tl.maximum(tl.minimum(tokens, piece * PIECE + PIECE) - first, 0).to(tl.float32)
            level += count / total * (tl.load(at + piece * 2 * PADDED) - pivot)
        level += pivot
        for piece in range(0, pieces):
            first = tl.maximum(piece * PIECE, sinks)
            count = tl.maximum(tl.minimum(tokens, piece * PIECE + PIECE) - first, 0).to(tl.float32)
            away = tl.load(at + piece * 2 * PADDED) - level
            squares += tl.where(count > 0, tl.load(at + piece * 2 * PADDED + PADDED), 0.0) + count * away * away
        spread = tl.maximum(tl.sqrt(squares / total), SPREAD_FLOOR)
        relative = (seen - level[None, :]) / spread[None, :]
        relative = tl.minimum(tl.maximum(relative, -BOUND), BOUND)
        if NORMALISED:
            level = (level - centre) / scale
        seen = tl.where((feature < 8 + OBSERVED)[None, :], relative, level[None, :])
    elif NORMALISED:
        seen = (seen - centre[None, :]) / scale[None, :]
    seen = tl.where(told[None, :], seen, tl.where((feature < 8)[None, :], age, 0.0))
    seen = tl.where(held[:, None], seen, 0.0)
    tl.store(features + slot[:, None] * SEEN + feature[None, :], seen, mask=held[:, None] & (feature < SEEN)[None, :])
    for first in range(0, HIDDEN, INNER):
        inner = first + tl.arange(0, INNER)
        there = (feature < SEEN)[:, None] & (inner < HIDDEN)[None, :]
        weights = tl.load(weight + feature[:, None] * HIDDEN + inner[None, :], mask=there, other=0.0)
        made = tl.dot(seen, weights, input_precision="ieee")
        made += tl.load(bias + inner, mask=inner < HIDDEN, other=0.0)[None, :]
        into = projected + slot[:, None] * HIDDEN + inner[None, :]
        tl.store(into, made, mask=held[:, None] & (inner < HIDDEN)[None, :])


@triton.jit
def judge(
    features,
    projected,
    table,
    segments,
    asked,
    output_weight,
    output_bias,
    score_weight,
    score_bias,
    rehearsed,
    rehearsed_records,
    power,
    shift,
    scores,
    scale,
    reach,
    SEEN: tl.constexpr,
    HIDDEN: tl.constexpr,
    HEADS: tl.constexpr,
    BOUNDED: tl.constexpr,
    REHEARSED: tl.constexpr,
    TOKENS: tl.constexpr,
    KEYS: tl.constexpr,
    FEATURES: tl.constexpr,
    INNER: tl.constexpr,
):
    """Backward attention to the newer tokens of a segment within `reach`, and the score of each token."""
    segment = tl.program_id(0)
    tokens, start = tl.load(asked + segment), tl.load(table + segment)
    begin = tl.program_id(1) * TOKENS
    index = begin + tl.arange(0, TOKENS)
    held = index < tokens
    slot = (start + index).to(tl.int64)
    feature, inner = tl.arange(0, FEATURES), tl.arange(0, INNER)
    each: tl.constexpr = HIDDEN // HEADS
    residual, modulation = (
        tl.zeros([TOKENS, FEATURES], tl.float32),
        tl.zeros([TOKENS, FEATURES], tl.float32),
    )
    last = tokens
    if BOUNDED:
        last = tl.minimum(tokens, begin + TOKENS + reach)
    for head in range(HEADS):
        at = projected + head * each + inner[None, :]
        mask = (inner < each)[None, :]
        query = tl.load(at + slot[:, None] * (3 * HIDDEN), mask=held[:, None] & mask, other=0.0) * scale
        highest = tl.full([TOKENS], NOTHING, tl.float32)
        total = tl.zeros([TOKENS], tl.float32)
        read = tl.zeros([TOKENS, INNER], tl.float32)
        for first in range(begin, last, KEYS):
            other = first + tl.arange(0, KEYS)
            there = other < tokens
            place = at + (start + other).to(tl.int64)[:, None] * (3 * HIDDEN)
            key = tl.load(place + HIDDEN, mask=there[:, None] & mask, other=0.0)
            value = tl.load(place + 2 * HIDDEN, mask=there[:, None] & mask, other=0.0)
            newer = (other[None, :] >= index[:, None]) & there[None, :]
            if BOUNDED:
                newer = newer & (other[None, :] <= index[:, None] + reach)
            logits = tl.where(newer, tl.dot(query, tl.trans(key), input_precision="ieee"), NOTHING)
            now = tl.maximum(highest, tl.max(logits, 1))
            paid = tl.where(newer, tl.exp(logits - now[:, None]), 0.0)
            less = tl.exp(highest - now)
            total = total * less + tl.sum(paid, 1)
            read = read * less[:, None] + tl.dot(paid, value, input_precision="ieee")
            highest = now
        read = read / tl.where(total != 0, total, 1.0)[:, None]
        mask = (inner < each)[:, None] & (feature < SEEN)[None, :]
        at = output_weight + (head * each + inner)[:, None] * (2 * SEEN) + feature[None, :]
        residual += tl.dot(read, tl.load(at, mask=mask, other=0.0), input_precision="ieee")
        modulation += tl.dot(read, tl.load(at + SEEN, mask=mask, other=0.0), input_precision="ieee")
    mask = feature < SEEN
    residual += tl.load(output_bias + feature, mask=mask, other=0.0)[None, :]
    modulation += tl.load(output_bias + SEEN + feature, mask=mask, other=0.0)[None, :]
    seen = tl.load(features + slot[:, None] * SEEN + feature[None, :], mask=held[:, None] & mask[None, :], other=0.0)
    weight = tl.load(score_weight + feature, mask=mask, other=0.0)
    score = tl.sum((seen + residual + seen * modulation) * weight[None, :], 1) + tl.load(score_bias)
    if REHEARSED:
        paid = tl.load(rehearsed + slot * rehearsed_records, mask=held, other=0.0).to(tl.float32)
        worth = power * tl.log(paid / tl.maximum(1 - paid, 0.01) + 1e-5) - shift
        score = tl.where(paid > 0, tl.maximum(score, worth), score)
    # tokens that are not judged stay in any case
    tl.store(scores + slot, tl.where(held, score, 0.0), mask=index < tl.load(table + 2 * segments + segment))
