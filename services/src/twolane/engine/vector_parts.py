"""Products in vector registers, and what else Python can't say to a compiler.

Parts of the functions in `compiled`, written as LLVM instructions because its vectoriser sums each key alone:
here the sums of as many keys as a register has lanes fold together. A vector is as wide as this processor's;
LLVM splits it where code was meant for another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types as typed_types
from numba.core import cgutils as typed_cgutils
from numba.extending import intrinsic

cgutils: Any = typed_cgutils
types: Any = typed_types
_FLOAT, _INT, _INT32 = ir.FloatType(), ir.IntType(64), ir.IntType(32)
_FLOAT_BYTES = 4
# Vectors of a row that are summed at a time, in registers.
_COLUMNS = 4
# Columns side by side in the blocks of a packed matrix [out / 64, in, 64], and rows that take one at a time:
# with 16 lanes these are 24 sums, 4 vectors of the block and one number of a row in 32 registers.
BLOCK_COLUMNS = 64
BLOCK_ROWS = 6

Emit = Callable[[Any, Any, Any, Any], Any]
# Numba's types describe Python callers, which these have none of.
_part: Callable[[Callable[..., tuple[Any, Emit]]], Callable[..., Any]] = intrinsic


def _lanes() -> int:
    """Numbers in one vector register."""
    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 16
    return 8 if features.get("avx2") else 4


LANES = _lanes()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_VECTOR_BYTES = LANES * _FLOAT_BYTES


@_part
def score_keys(context: Any, query: Any, keys: Any, n_dims: Any, to: Any) -> tuple[Any, Emit]:
    """Writes the products of a query [n_dims] with LANES keys that follow each other; all are addresses.

    `n_dims` must be a multiple of LANES.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        query, keys, n_dims, to = arguments
        sums = [cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, None)) for _ in range(LANES)]
        row_bytes = builder.mul(n_dims, _constant(_FLOAT_BYTES))
        with cgutils.for_range_slice(builder, _constant(0), row_bytes, _constant(_VECTOR_BYTES)) as (at, _):
            own = _load(builder, builder.add(query, at))
            key = builder.add(keys, at)
            for total in sums:
                product = _multiply_add(builder, own, _load(builder, key), builder.load(total))
                builder.store(product, total)
                key = builder.add(key, row_bytes)
        _store(builder, _fold(builder, [builder.load(total) for total in sums]), to)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp), emit


@_part
def add_values(
    context: Any, shares: Any, values: Any, n_tokens: Any, n_dims: Any, to: Any
) -> tuple[Any, Emit]:
    """Adds the sum of `n_tokens` values [n_dims], each times its share, to what is at `to`: addresses.

    `n_dims` must be a multiple of LANES.
    """

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        shares, values, n_tokens, n_dims, to = arguments
        row_bytes = builder.mul(n_dims, _constant(_FLOAT_BYTES))

        def columns(at: Any, count: int) -> None:
            targets = [builder.add(builder.add(to, at), _constant(i * _VECTOR_BYTES)) for i in range(count)]
            sums = [cgutils.alloca_once_value(builder, _load(builder, target)) for target in targets]
            with cgutils.for_range(builder, n_tokens, intp=_INT) as loop:
                place = builder.add(shares, builder.mul(loop.index, _constant(_FLOAT_BYTES)))
                share = _spread(builder, builder.load(builder.inttoptr(place, _FLOAT.as_pointer())))
                row = builder.add(builder.add(values, at), builder.mul(loop.index, row_bytes))
                for i, total in enumerate(sums):
                    value = _load(builder, builder.add(row, _constant(i * _VECTOR_BYTES)))
                    builder.store(_multiply_add(builder, share, value, builder.load(total)), total)
            for target, total in zip(targets, sums, strict=True):
                _store(builder, builder.load(total), target)

        wide = _constant(_COLUMNS * _VECTOR_BYTES)
        rest = builder.sub(row_bytes, builder.urem(row_bytes, wide))
        with cgutils.for_range_slice(builder, _constant(0), rest, wide) as (at, _):
            columns(at, _COLUMNS)
        with cgutils.for_range_slice(builder, rest, row_bytes, _constant(_VECTOR_BYTES)) as (at, _):
            columns(at, 1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp, types.intp), emit


@_part
def fetch_ahead(context: Any, address: Any) -> tuple[Any, Emit]:
    """Asks for one line of memory that will be read soon."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _prefetch(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(types.intp), emit


@_part
def float_of_bits(context: Any, bits: Any) -> tuple[Any, Emit]:
    """The float32 that these 32 bits are."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _FLOAT)

    return types.float32(types.int32), emit


def _multiply_rows(n_rows: int) -> Any:
    """A part that multiplies so many rows [n_in] with a block [n_in, 64] and asks for the block `ahead`."""
    n_vectors = BLOCK_COLUMNS // LANES

    @_part
    def multiply(context: Any, x: Any, block: Any, ahead: Any, to: Any, sizes: Any) -> tuple[Any, Emit]:
        def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, block, ahead, to, sizes = arguments
            n_in, n_out = cgutils.unpack_tuple(builder, sizes, 2)
            x_bytes, to_bytes = (builder.mul(size, _constant(_FLOAT_BYTES)) for size in (n_in, n_out))
            zero = ir.Constant(_VECTOR, None)
            sums = [
                [cgutils.alloca_once_value(builder, zero) for _ in range(n_vectors)] for _ in range(n_rows)
            ]
            starts = [builder.add(x, builder.mul(x_bytes, _constant(row))) for row in range(n_rows)]
            with cgutils.for_range(builder, n_in, intp=_INT) as loop:
                line = builder.mul(loop.index, _constant(BLOCK_COLUMNS * _FLOAT_BYTES))
                at = builder.mul(loop.index, _constant(_FLOAT_BYTES))
                places = [_constant(i * _VECTOR_BYTES) for i in range(n_vectors)]
                weights = [_load(builder, builder.add(builder.add(block, line), place)) for place in places]
                for place in places:
                    _prefetch(builder, builder.add(builder.add(ahead, line), place))
                for start, row in zip(starts, sums, strict=True):
                    number = builder.load(builder.inttoptr(builder.add(start, at), _FLOAT.as_pointer()))
                    factor = _spread(builder, number)
                    for weight, total in zip(weights, row, strict=True):
                        builder.store(_multiply_add(builder, factor, weight, builder.load(total)), total)
            for number, row in enumerate(sums):
                out = builder.add(to, builder.mul(to_bytes, _constant(number)))
                for i, total in enumerate(row):
                    _store(builder, builder.load(total), builder.add(out, _constant(i * _VECTOR_BYTES)))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4, types.UniTuple(types.intp, 2)), emit

    return multiply


multiply_1, multiply_2, multiply_3 = _multiply_rows(1), _multiply_rows(2), _multiply_rows(3)
multiply_4, multiply_5, multiply_6 = _multiply_rows(4), _multiply_rows(5), _multiply_rows(6)


def _prefetch(builder: Any, address: Any) -> None:
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _INT32, _INT32, _INT32])
    function = builder.module.declare_intrinsic("llvm.prefetch", (byte,), kind)
    read, near, data = (ir.Constant(_INT32, value) for value in (0, 2, 1))
    builder.call(function, [builder.inttoptr(address, byte), read, near, data])


def _constant(value: int) -> Any:
    return ir.Constant(_INT, value)


def _load(builder: Any, address: Any) -> Any:
    vector = builder.load(builder.inttoptr(address, _VECTOR.as_pointer()))
    vector.align = _FLOAT_BYTES
    return vector


def _store(builder: Any, vector: Any, address: Any) -> None:
    builder.store(vector, builder.inttoptr(address, _VECTOR.as_pointer())).align = _FLOAT_BYTES


def _multiply_add(builder: Any, x: Any, y: Any, z: Any) -> Any:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return builder.call(builder.module.declare_intrinsic(f"llvm.fma.v{LANES}f32", (), kind), [x, y, z])


def _spread(builder: Any, number: Any) -> Any:
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, ir.Constant(_INT32, 0))
    return _shuffle(builder, first, first, [0] * LANES)


def _shuffle(builder: Any, x: Any, y: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(_INT32, LANES), lanes))


def _fold(builder: Any, vectors: list[Any]) -> Any:
    """The sums over the lanes of LANES vectors, as the lanes of one: two halves to one, again and again."""
    width = LANES // 2
    while len(vectors) > 1:
        low = [lane for lane in range(LANES) if lane % (2 * width) < width]
        left = [lane for block in _blocks(low, width) for lane in (*block, *(LANES + at for at in block))]
        right = [lane + width for lane in left]
        half = len(vectors) // 2
        pairs = zip(vectors[:half], vectors[half:], strict=True)
        vectors = [
            builder.fadd(_shuffle(builder, x, y, left), _shuffle(builder, x, y, right)) for x, y in pairs
        ]
        width //= 2
    return vectors[0]


def _blocks(lanes: list[int], width: int) -> list[list[int]]:
    return [lanes[at : at + width] for at in range(0, len(lanes), width)]
