"""What lies between two matrix products of a layer, one compiled function for each gap: float32 on CPU.

Called by the compiled forward pass with numpy views of torch memory. Importing this module compiles, or loads
what an earlier process compiled. Every function leaves its result where its last argument, or the first where
the name says so, points to; nothing is checked here: a wrong index damages memory.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from twolane.engine.compiled_cache import compiled, part, part_without_nan
from twolane.engine.vector_parts import (
    BLOCK_COLUMNS,
    BLOCK_ROWS,
    LANES,
    add_values,
    fetch_ahead,
    float_of_bits,
    multiply_1,
    multiply_2,
    multiply_3,
    multiply_4,
    multiply_5,
    multiply_6,
    score_keys,
)

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

# Places in the numbers that `place` and `attend` take: shapes, where a layer's part of a page begins, the
# window (0: none) and the kv heads [FIRST_HEAD, END_HEAD) to compute.
HEADS: Final = 0
KV_HEADS: Final = 1
PAGE_TOKENS: Final = 2
PAGE_STRIDE: Final = 3
LAYER_START: Final = 4
WINDOW: Final = 5
FIRST_HEAD: Final = 6
END_HEAD: Final = 7
N_NUMBERS: Final = 8

# Keys whose scores are held at a time.
_BLOCK_TOKENS: Final = 128
_BYTES: Final = 4
_LINE_BYTES: Final = 64
_ZERO, _ONE, _HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)
_LEAST = np.float32(-np.inf)
# exp: below this the result counts as this one's, some 1e-38; log2(e); ln 2 in two parts, the first exact in
# products with small integers; Cephes' polynomial for what is left.
_COLDEST, _LOG2E = np.float32(-87.0), np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)


@part
def _exp(x: np.float32) -> np.float32:
    """e to the x, for x up to 88, within two units in the last place; a compiler can make vectors of it."""
    x = max(x, _COLDEST)
    n = np.floor(x * _LOG2E + _HALF)
    rest = x - n * _LN2_HIGH - n * _LN2_LOW
    value = ((((_P0 * rest + _P1) * rest + _P2) * rest + _P3) * rest + _P4) * rest + _P5
    value = value * rest * rest + rest + _ONE
    power: np.float32 = float_of_bits((np.int32(n) + np.int32(127)) << np.int32(23))
    scaled: np.float32 = value * power
    return scaled


@part
def _norm_row(x: Floats, squares: np.float32, weight: Floats, eps: np.float32, out: Floats) -> None:
    """Root mean square norm of one row whose sum of squares is known, times the weight."""
    scale = _ONE / np.sqrt(squares / np.float32(x.shape[0]) + eps)
    for at in range(x.shape[0]):
        out[at] = x[at] * scale * weight[at]


@part
def _sum_of_squares(x: Floats) -> np.float32:
    squares = _ZERO
    for at in range(x.shape[0]):
        squares += x[at] * x[at]
    return squares


@compiled("void(f4[:,::1], f4[::1], f4, f4[:,::1])")
def norm(stream: Floats, weight: Floats, eps: np.float32, to: Floats) -> None:
    """Root mean square norm of each row, times the weight [hidden_size]."""
    for row in range(stream.shape[0]):
        _norm_row(stream[row], _sum_of_squares(stream[row]), weight, eps, to[row])


@compiled("void(f4[:,::1], f4[:,::1], f4[::1], f4, f4[:,::1])")
def add_norm(stream: Floats, added: Floats, weight: Floats, eps: np.float32, to: Floats) -> None:
    """Adds to the stream, in place, and norms what it then is."""
    size = stream.shape[1]
    for row in range(stream.shape[0]):
        x, more = stream[row], added[row]
        squares = _ZERO
        for at in range(size):
            value = x[at] + more[at]
            x[at] = value
            squares += value * value
        _norm_row(x, squares, weight, eps, to[row])


@compiled("void(f4[:,::1], f4[:,::1])")
def silu_mul(gate_up: Floats, to: Floats) -> None:
    """silu(gate) * up, from rows that hold gate and up side by side."""
    size = to.shape[1]
    for row in range(to.shape[0]):
        gate, up, out = gate_up[row, :size], gate_up[row, size : 2 * size], to[row]
        for at in range(size):
            # Past 87 a gate is so far below zero that nothing is left of it.
            out[at] = gate[at] / (_ONE + _exp(min(-gate[at], -_COLDEST))) * up[at]


@compiled("void(f4[:,::1], i8, f4[::1], f4[:,::1])")
def multiply(x: Floats, blocks: int, bias: Floats, to: Floats) -> None:
    """Rows [T, in] times a packed matrix, blocks [out / 64, in, 64] at an address, plus a bias unless empty.

    Each block is read once from memory, for it stays in the cache while the rows take turns, and the next one
    is asked for meanwhile.
    """
    n_rows, n_in, n_out = x.shape[0], x.shape[1], to.shape[1]
    sizes = (n_in, n_out)
    x_bytes, to_bytes, block_bytes = n_in * _BYTES, n_out * _BYTES, n_in * BLOCK_COLUMNS * _BYTES
    for number in range(n_out // BLOCK_COLUMNS):
        block = blocks + number * block_bytes
        ahead = block + block_bytes if number + 1 < n_out // BLOCK_COLUMNS else block
        row, turns = 0, (n_rows + BLOCK_ROWS - 1) // BLOCK_ROWS
        while row < n_rows:
            count = (n_rows - row + turns - 1) // turns
            start, out = x.ctypes.data + row * x_bytes, to.ctypes.data + row * to_bytes
            out += number * BLOCK_COLUMNS * _BYTES
            if count == 6:
                multiply_6(start, block, ahead, out, sizes)
            elif count == 5:
                multiply_5(start, block, ahead, out, sizes)
            elif count == 4:
                multiply_4(start, block, ahead, out, sizes)
            elif count == 3:
                multiply_3(start, block, ahead, out, sizes)
            elif count == 2:
                multiply_2(start, block, ahead, out, sizes)
            else:
                multiply_1(start, block, ahead, out, sizes)
            row, turns, ahead = row + count, turns - 1, block
    for row in range(n_rows if bias.shape[0] > 0 else 0):
        own = to[row]
        for at in range(n_out):
            own[at] += bias[at]


@compiled("void(f4[:,:,::1], f4[:,::1], f4)")
def norm_heads(heads: Floats, weight: Floats, eps: np.float32) -> None:
    """Root mean square norm of the first heads of each token, in place; a weight [n, head_dim] for these."""
    for token in range(heads.shape[0]):
        for head in range(weight.shape[0]):
            x, own = heads[token, head], weight[head]
            scale = _ONE / np.sqrt(_sum_of_squares(x) / np.float32(x.shape[0]) + eps)
            # Not by _norm_row: a compiler that can't tell its two rows apart here takes three times as long.
            for at in range(x.shape[0]):
                x[at] = x[at] * scale * own[at]


@compiled("void(f4[:,:,::1], UniTuple(f4[:,::1], 2), f4[::1], i8[:,::1], i8[:,::1], i8[::1])")
def place(
    heads: Floats,
    turns: tuple[Floats, Floats],
    pages: Floats,
    tokens: Integers,
    table: Integers,
    numbers: Integers,
) -> None:
    """Rotates queries and keys in place and stores keys and values in the pages.

    Args:
        heads: queries, keys, values side by side [T, Hq + 2 * Hkv, D].
        turns: cosines and sines by position, of half the dimensions at least [n_positions, D or D / 2].
        pages: the pool, flat.
        tokens: packed row, position of each token [T, 2].
        table: pages of each row [R, P].
        numbers: shapes; see above.
    """
    n_rotated, n_kv = numbers[HEADS] + numbers[KV_HEADS], numbers[KV_HEADS]
    page_tokens, half = numbers[PAGE_TOKENS], heads.shape[2] // 2
    size = 2 * half
    for token in range(heads.shape[0]):
        row, position = tokens[token, 0], tokens[token, 1]
        cos, sin = turns[0][position, :half], turns[1][position, :half]
        for head in range(n_rotated):
            low, high = heads[token, head, :half], heads[token, head, half:]
            for at in range(half):
                x, y = low[at], high[at]
                low[at] = x * cos[at] - y * sin[at]
                high[at] = y * cos[at] + x * sin[at]
        page = table[row, position // page_tokens] * numbers[PAGE_STRIDE] + numbers[LAYER_START]
        for side_head in range(2 * n_kv):
            start = page + (side_head * page_tokens + position % page_tokens) * size
            own, stored = heads[token, numbers[HEADS] + side_head], pages[start : start + size]
            for at in range(size):
                stored[at] = own[at]


class _Pool(NamedTuple):
    """The pages, flat; those of each row [R, P]; shapes."""

    pages: Floats
    table: Integers
    numbers: Integers


class _Spot(NamedTuple):
    """Pages of a row from a column on, and a kv head."""

    row: int
    column: int
    head: int


@part
def _start(pool: _Pool, spot: _Spot, column: int, size: int) -> int:
    """Where the keys of the spot's head begin in a page of its row; -1 past the last page."""
    if column >= pool.table.shape[1]:
        return -1
    page = pool.table[spot.row, column] * pool.numbers[PAGE_STRIDE] + pool.numbers[LAYER_START]
    start: int = page + spot.head * pool.numbers[PAGE_TOKENS] * size
    return start


@part
def _fetch(pages: Floats, start: int, size: int) -> None:
    """Asks for `size` numbers of the pool that are needed soon."""
    if start >= 0:
        begin = pages.ctypes.data + start * _BYTES
        for at in range(0, size * _BYTES, _LINE_BYTES):
            fetch_ahead(begin + at)


@part
def _score_page(query: Floats, keys: Floats, first: int, end: int, to: Floats) -> None:
    """Products of a query [D] with keys [first, end), and maybe others, of a page [page_tokens * D]."""
    size, page_tokens = query.shape[0], to.shape[0]
    key, out = keys.ctypes.data, to.ctypes.data
    token = first // LANES * LANES
    while token < end and token + LANES <= page_tokens:
        score_keys(query.ctypes.data, key + token * size * _BYTES, size, out + token * _BYTES)
        token += LANES
    while token < end:
        own, total = keys[token * size : (token + 1) * size], _ZERO
        for at in range(size):
            total += query[at] * own[at]
        to[token] = total
        token += 1


@part
def _score(queries: Floats, pool: _Pool, spot: _Spot, span: tuple[int, int], to: Floats) -> None:
    """Products of the head's queries [G, D] with keys [low, high) from the spot's first page on."""
    size, page_tokens = queries.shape[1], pool.numbers[PAGE_TOKENS]
    page_size = page_tokens * size
    for at in range(span[0] // page_tokens * page_tokens, span[1], page_tokens):
        start = _start(pool, spot, spot.column + at // page_tokens, size)
        _fetch(pool.pages, start + pool.numbers[KV_HEADS] * page_size, page_size)
        first, end = max(span[0] - at, 0), min(span[1] - at, page_tokens)
        for query in range(queries.shape[0]):
            keys = pool.pages[start : start + page_size]
            _score_page(queries[query], keys, first, end, to[query, at : at + page_tokens])


@part_without_nan
def _soften(scores: Floats, scale: np.float32, before: np.float32) -> tuple[np.float32, np.float32]:
    """Turns products into shares relative to the best so far; returns the best now and the shares' sum."""
    best = before
    for at in range(scores.shape[0]):
        best = max(best, scores[at] * scale)
    total = _ZERO
    for at in range(scores.shape[0]):
        share = _exp(scores[at] * scale - best)
        scores[at] = share
        total += share
    return best, total


@part
def _add(shares: Floats, pool: _Pool, spot: _Spot, span: tuple[int, int], to: Floats, ahead: _Spot) -> None:
    """Adds values [low, high) from the spot's first page on, times their shares [G, n], to [G, D]."""
    size, page_tokens = to.shape[1], pool.numbers[PAGE_TOKENS]
    page_size = page_tokens * size
    for at in range(span[0] // page_tokens * page_tokens, span[1], page_tokens):
        column = at // page_tokens
        start = _start(pool, spot, spot.column + column, size) + pool.numbers[KV_HEADS] * page_size
        _fetch(pool.pages, _start(pool, ahead, ahead.column + column, size), page_size)
        first, end = max(span[0] - at, 0), min(span[1] - at, page_tokens)
        values = pool.pages.ctypes.data + (start + first * size) * _BYTES
        for query in range(to.shape[0]):
            own = shares[query, at + first : at + end].ctypes.data
            add_values(own, values, end - first, size, to[query].ctypes.data)


@part
def _ahead(tokens: Integers, numbers: Integers, token: int, spot: _Spot, block: int) -> _Spot:
    """What is read after the values of a spot: keys of the next head, block of pages or token."""
    if spot.head + 1 < numbers[END_HEAD]:
        return _Spot(spot.row, spot.column, spot.head + 1)
    if (spot.column + block) * numbers[PAGE_TOKENS] <= tokens[token, 1]:
        return _Spot(spot.row, spot.column + block, numbers[FIRST_HEAD])
    if token + 1 < tokens.shape[0]:
        column = _first_key(tokens, numbers, token + 1) // numbers[PAGE_TOKENS]
        return _Spot(tokens[token + 1, 0], column, numbers[FIRST_HEAD])
    return _Spot(spot.row, 1 << 40, spot.head)


@part
def _first_key(tokens: Integers, numbers: Integers, token: int) -> int:
    """The first position that a token sees."""
    return max(0, tokens[token, 1] + 1 - numbers[WINDOW]) if numbers[WINDOW] > 0 else 0


@part
def _scale(x: Floats, factor: np.float32) -> None:
    """Multiplies in place; by zero it clears, whatever was there."""
    for at in range(x.shape[0]):
        x[at] = x[at] * factor if factor != _ZERO else _ZERO


@compiled("void(f4[:,:,::1], f4[::1], i8[:,::1], i8[:,::1], i8[::1], f4[:,:,::1])")
def attend(
    heads: Floats, pages: Floats, tokens: Integers, table: Integers, numbers: Integers, to: Floats
) -> None:
    """Attention of each token over its row's pages up to itself, the softmax taken block by block.

    Args:
        heads, pages, tokens, table, numbers: as for `place`.
        to: attended [T, Hq, D], written for the queries of kv heads [FIRST_HEAD, END_HEAD).
    """
    pool = _Pool(pages, table, numbers)
    page_tokens, group, size = numbers[PAGE_TOKENS], numbers[HEADS] // numbers[KV_HEADS], heads.shape[2]
    block = max(1, _BLOCK_TOKENS // page_tokens)
    scale = _ONE / np.sqrt(np.float32(size))
    scores = np.empty((group, block * page_tokens), np.float32)
    best, total = np.empty(to.shape[1], np.float32), np.empty(to.shape[1], np.float32)
    begin_query, end_query = numbers[FIRST_HEAD] * group, numbers[END_HEAD] * group
    for token in range(heads.shape[0]):
        first, end = _first_key(tokens, numbers, token), tokens[token, 1] + 1
        for query in range(begin_query, end_query):
            best[query], total[query] = _LEAST, _ZERO
            _scale(to[token, query], _ZERO)
        for column in range(first // page_tokens, (end + page_tokens - 1) // page_tokens, block):
            begin = column * page_tokens
            span = (max(first - begin, 0), min(end - begin, block * page_tokens))
            for head in range(numbers[FIRST_HEAD], numbers[END_HEAD]):
                spot, queries = _Spot(tokens[token, 0], column, head), slice(head * group, (head + 1) * group)
                _score(heads[token, queries], pool, spot, span, scores)
                for at in range(group):
                    query = head * group + at
                    new, more = _soften(scores[at, span[0] : span[1]], scale, best[query])
                    if total[query] > _ZERO and new > best[query]:
                        faded = _exp(best[query] - new)
                        total[query] *= faded
                        _scale(to[token, query], faded)
                    best[query] = new
                    total[query] += more
                ahead = _ahead(tokens, numbers, token, spot, block)
                _add(scores, pool, spot, span, to[token, queries], ahead)
        for query in range(begin_query, end_query):
            _scale(to[token, query], _ONE / total[query])
