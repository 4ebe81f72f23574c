// Integer products: rows of activations in one or two planes of bytes, times int8 weights, summed in int32.
//
// Integer sums have no order, so it does not matter which of the kernels below computes a row, nor beside how many
// others: that is what makes a row's bits its own. A level is a signed 16-bit number q = 256 * high + low; `high` is
// stored as high + 128 and `low` as it is, both unsigned, since the instructions multiply unsigned by signed bytes. What
// the 128 adds is 128 times the sum of a column's weights, which is taken off again.
//
// Weights lie in tiles of 32 columns: [tile][in / 4][column][4]. One step of a tile is two registers of 64 bytes, and
// sixteen steps are two operands of an AMX product, so every kernel reads the same bytes in the order they lie.

#ifndef MESHNODE_PRODUCTS_H
#define MESHNODE_PRODUCTS_H

#include "simd.h"

enum { TILE = 32, DEEP = 64, BLOCK_ROWS = 16 };

typedef struct {
    const int8_t *weights;    // [tile][in / 4][32][4], in padded to 64 with zeros, columns to 32
    const float *scales;      // [column]
    const int32_t *offsets;   // [column] 128 * sum of the weights
    int32_t in, out;          // padded
} Matrix;

typedef struct {
    const uint8_t *levels;    // [row][plane][in]; readable to a multiple of 16 rows
    const float *scales;      // [row]
    int32_t planes;
    int32_t rows;
} Rows;

#if defined(__AVX512VNNI__)

INLINE void products_few(const int rows, const int planes, const Rows *of, const Matrix *by, int row, int tile, float *sums) {
    const size_t in = (size_t)by->in;
    const uint8_t *levels = of->levels + (size_t)row * planes * in;
    const int8_t *weights = by->weights + (size_t)tile * in * TILE;
    __m512i sum[6][2][2];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < planes; p++) sum[r][p][0] = sum[r][p][1] = _mm512_setzero_si512();
    for (size_t k = 0; k < in; k += 4, weights += 4 * TILE) {
        __m512i left = _mm512_loadu_si512(weights), right = _mm512_loadu_si512(weights + 64);
        for (int r = 0; r < rows; r++)
            for (int p = 0; p < planes; p++) {
                int32_t four;
                memcpy(&four, levels + ((size_t)r * planes + p) * in + k, 4);
                __m512i by_four = _mm512_set1_epi32(four);
                sum[r][p][0] = _mm512_dpbusd_epi32(sum[r][p][0], by_four, left);
                sum[r][p][1] = _mm512_dpbusd_epi32(sum[r][p][1], by_four, right);
            }
    }
    for (int half = 0; half < 2; half++) {
        const int column = tile * TILE + half * 16;
        __m512i offset = _mm512_loadu_si512(by->offsets + column);
        V scale = v_load(by->scales + column);
        for (int r = 0; r < rows; r++) {
            V y = v_float(_mm512_sub_epi32(sum[r][0][half], offset));
            if (planes == 2) y = v_fma(y, v_set(256.0f), v_float(sum[r][1][half]));
            v_store(sums + r * TILE + half * 16, v_mul(v_mul(y, v_set(of->scales[row + r])), scale));
        }
    }
}

#elif defined(__AVXVNNI__)

// Sixteen columns at once: of 16 registers, 12 sum. Rows three by three.
INLINE void products_half(const int rows, const int planes, const Rows *of, const Matrix *by, int row, int column, float *sums) {
    const size_t in = (size_t)by->in;
    const uint8_t *levels = of->levels + (size_t)row * planes * in;
    const int8_t *weights = by->weights + (size_t)(column / TILE) * in * TILE + column % TILE * 4;
    __m256i sum[3][2][2];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < planes; p++) sum[r][p][0] = sum[r][p][1] = _mm256_setzero_si256();
    for (size_t k = 0; k < in; k += 4, weights += 4 * TILE) {
        __m256i left = _mm256_loadu_si256((const __m256i *)weights), right = _mm256_loadu_si256((const __m256i *)(weights + 32));
        for (int r = 0; r < rows; r++)
            for (int p = 0; p < planes; p++) {
                int32_t four;
                memcpy(&four, levels + ((size_t)r * planes + p) * in + k, 4);
                __m256i by_four = _mm256_set1_epi32(four);
                sum[r][p][0] = _mm256_dpbusd_avx_epi32(sum[r][p][0], by_four, left);
                sum[r][p][1] = _mm256_dpbusd_avx_epi32(sum[r][p][1], by_four, right);
            }
    }
    const V scale = v_load(by->scales + column);
    const __m256i *offset = (const __m256i *)(by->offsets + column);
    for (int r = 0; r < rows; r++) {
        V y = v_float((VI){_mm256_sub_epi32(sum[r][0][0], _mm256_loadu_si256(offset)),
                           _mm256_sub_epi32(sum[r][0][1], _mm256_loadu_si256(offset + 1))});
        if (planes == 2) y = v_fma(y, v_set(256.0f), v_float((VI){sum[r][1][0], sum[r][1][1]}));
        v_store(sums + r * TILE + column % TILE, v_mul(v_mul(y, v_set(of->scales[row + r])), scale));
    }
}

INLINE void products_few(const int rows, const int planes, const Rows *of, const Matrix *by, int row, int tile, float *sums) {
    for (int first = 0; first < rows; first += 3)
        for (int half = 0; half < 2; half++) {
            float *to = sums + first * TILE;
            const int column = tile * TILE + half * 16;
            switch (rows - first) {
                case 1: products_half(1, planes, of, by, row + first, column, to); break;
                case 2: products_half(2, planes, of, by, row + first, column, to); break;
                default: products_half(3, planes, of, by, row + first, column, to); break;
            }
        }
}

#else

#if defined(__AVX2__)
// Sixteen-bit products of pairs: those of bytes would saturate. Four columns of four weights a register.
INLINE void tile_sums(const uint8_t *levels, const int8_t *weights, size_t in, int32_t *sums) {
    __m256i sum[8];
    for (int c = 0; c < 8; c++) sum[c] = _mm256_setzero_si256();
    for (size_t k = 0; k < in; k += 4, weights += 4 * TILE) {
        int32_t four;
        memcpy(&four, levels + k, 4);
        __m256i by_four = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(four)));
        for (int c = 0; c < 8; c++) {
            __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(weights + 16 * c)));
            sum[c] = _mm256_add_epi32(sum[c], _mm256_madd_epi16(wide, by_four));
        }
    }
    for (int c = 0; c < 8; c++) {
        int32_t pairs[8];
        _mm256_storeu_si256((__m256i *)pairs, sum[c]);
        for (int i = 0; i < 4; i++) sums[4 * c + i] = pairs[2 * i] + pairs[2 * i + 1];
    }
}
#else
INLINE void tile_sums(const uint8_t *levels, const int8_t *weights, size_t in, int32_t *sums) {
    int32_t sum[TILE][4] = {{0}};
    for (size_t k = 0; k < in; k += 4, weights += 4 * TILE)
        for (int c = 0; c < TILE; c++)
            for (int i = 0; i < 4; i++) sum[c][i] += (int32_t)levels[k + i] * weights[4 * c + i];
    for (int c = 0; c < TILE; c++) sums[c] = sum[c][0] + sum[c][1] + sum[c][2] + sum[c][3];
}
#endif

INLINE void products_few(const int rows, const int planes, const Rows *of, const Matrix *by, int row, int tile, float *sums) {
    const size_t in = (size_t)by->in;
    const int8_t *weights = by->weights + (size_t)tile * in * TILE;
    for (int r = 0; r < rows; r++) {
        int32_t high[TILE], low[TILE];
        const uint8_t *levels = of->levels + (size_t)(row + r) * planes * in;
        tile_sums(levels, weights, in, high);
        if (planes == 2) tile_sums(levels + in, weights, in, low);
        for (int c = 0; c < TILE; c++) {
            const int column = tile * TILE + c;
            float y = (float)(high[c] - by->offsets[column]);
            if (planes == 2) y = __builtin_fmaf(y, 256.0f, (float)low[c]);
            sums[r * TILE + c] = y * of->scales[row + r] * by->scales[column];
        }
    }
}

#endif

#if defined(__AMX_INT8__)

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((packed)) TileShape;

// A product takes a cycle for each row of its left tile: a pass of few rows asks for no more.
INLINE void amx_begin(int rows) {
    TileShape shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.row_bytes[i] = 64, shape.rows[i] = i < 6 && rows < 16 ? (uint8_t)rows : 16;
    _tile_loadconfig(&shape);
}

INLINE void amx_end(void) { _tile_release(); }

// Sixteen rows at once, 32 columns.
INLINE void products_many(const int planes, const Rows *of, const Matrix *by, int row, int tile, float *sums) {
    const size_t in = (size_t)by->in, stride = in * planes;
    const uint8_t *levels = of->levels + (size_t)row * stride;
    const int8_t *weights = by->weights + (size_t)tile * in * TILE;
    int32_t sum[4][16][16];
    _tile_zero(0);
    _tile_zero(1);
    if (planes == 2) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (size_t k = 0; k < in; k += DEEP) {
        for (int line = 0; line < 32; line++) _mm_prefetch((const char *)weights + (k + DEEP) * TILE + line * 64, _MM_HINT_T0);
        _tile_loadd(4, levels + k, stride);
        _tile_loadd(6, weights + k * TILE, 4 * TILE);
        _tile_loadd(7, weights + k * TILE + 64, 4 * TILE);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        if (planes == 2) {
            _tile_loadd(5, levels + in + k, stride);
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
        }
    }
    _tile_stored(0, sum[0], 64);
    _tile_stored(1, sum[1], 64);
    if (planes == 2) {
        _tile_stored(2, sum[2], 64);
        _tile_stored(3, sum[3], 64);
    }
    for (int half = 0; half < 2; half++) {
        const int column = tile * TILE + half * 16;
        __m512i offset = _mm512_loadu_si512(by->offsets + column);
        V scale = v_load(by->scales + column);
        for (int r = 0; r < 16; r++) {
            V y = v_float(_mm512_sub_epi32(_mm512_loadu_si512(sum[half][r]), offset));
            if (planes == 2) y = v_fma(y, v_set(256.0f), v_float(_mm512_loadu_si512(sum[2 + half][r])));
            v_store(sums + r * TILE + half * 16, v_mul(v_mul(y, v_set(of->scales[row + r])), scale));
        }
    }
}

#endif

// The products of `count` rows, at most BLOCK_ROWS, with one tile: [row][32].
static void products(const Rows *of, const Matrix *by, int row, int count, int tile, float *sums) {
#define FEW(rows) \
    case rows: \
        if (of->planes == 2) products_few(rows, 2, of, by, row, tile, sums); \
        else products_few(rows, 1, of, by, row, tile, sums); \
        break
    while (count > 0) {
        int taken = count < 6 ? count : 6;
        switch (taken) {
            FEW(1);
            FEW(2);
            FEW(3);
            FEW(4);
            FEW(5);
            FEW(6);
        }
        row += taken, count -= taken, sums += taken * TILE;
    }
#undef FEW
}

#endif
