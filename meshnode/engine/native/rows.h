// What is done to one row: rounding to levels, the embedding, the end of the first product, and where sums go.

#ifndef MESHNODE_ROWS_H
#define MESHNODE_ROWS_H

#include "model.h"

static void quantise(const float *x, int in, int width, float eps, const float *gain, int planes, uint8_t *levels, float *scale) {
    const V zero = v_set(0.0f);
    V top = zero, squares = zero, poison = zero;
    for (int i = 0; i < in; i += 16) {
        V v = v_load(x + i);
        top = v_max(top, v_abs(v));
        squares = v_fma(v, v, squares);
        poison = v_fma(v, zero, poison);  // NaN as soon as one number is not finite; else 0
    }
    float inverse = eps < 0 ? 1.0f : 1.0f / __builtin_sqrtf(v_sum(squares) / (float)width + eps);
    if (gain) {
        top = zero;
        for (int i = 0; i < in; i += 16) top = v_max(top, v_abs(v_mul(v_load(x + i), v_load(gain + i))));
    }
    float most = v_greatest(top);
    if (!(most > 1e-30f)) most = 1e-30f;
    const float steps = planes == 2 ? 32767.0f : 127.0f;
    const V by = v_set(steps / most);
    for (int i = 0; i < in; i += 16) {
        V v = v_load(x + i);
        VI q = v_int(v_mul(gain ? v_mul(v, v_load(gain + i)) : v, by));
        if (planes == 2) v_store_levels(q, levels + i, levels + in + i);
        else v_store_level(q, levels + i);
    }
    *scale = most / steps * inverse + v_sum(poison);
}

static void embed(const Matrix *of, int token, int hidden, float *row) {
    const int8_t *tile = of->weights + (int64_t)(token / TILE) * of->in * TILE + token % TILE * 4;
    const float scale = of->scales[token];
    for (int k = 0; k < hidden; k++) row[k] = (float)tile[k / 4 * 4 * TILE + k % 4] * scale;
}

// Biases, norms of heads, rope, and where keys and values go, for one row and one kv head with its queries.
static void finish(Engine *of, const Layer *layer, int number, int row, const int32_t *pages, int position, int kv) {
    const Model *m = &of->model;
    const int dim = m->head_dim, group = m->heads / m->kv_heads, slot = position % PAGE;
    float *joined = of->joined + (int64_t)row * layer->qkv.out;
    const float *turns = m->turns + (int64_t)position * dim;
    uint16_t *page = m->pool + pages[position / PAGE] * of->page_numbers + number * of->layer_numbers;
    uint16_t *keys = page + (int64_t)kv * dim * PAGE + place(slot);
    uint16_t *values = page + (int64_t)m->kv_heads * dim * PAGE + ((int64_t)kv * PAGE + slot) * of->wide;
    for (int h = 0; h <= group; h++) {
        const int head = h < group ? kv * group + h : m->heads + kv;
        float *vector = joined + (int64_t)head * dim;
        if (layer->bias)
            for (int d = 0; d < dim; d++) vector[d] += layer->bias[head * dim + d];
        if (layer->gain) {
            V squares = v_set(0.0f);
            for (int d = 0; d < dim; d += 16) {
                V v = v_lanes(v_load(vector + d), 0, dim - d, 0.0f);
                squares = v_fma(v, v, squares);
            }
            float inverse = 1.0f / __builtin_sqrtf(v_sum(squares) / (float)dim + m->eps);
            for (int d = 0; d < dim; d++) vector[d] = vector[d] * inverse * layer->gain[head * dim + d];
        }
        for (int d = 0; d < dim; d += 2) {
            float x = vector[d], y = vector[d + 1], c = turns[d], s = turns[d + 1];
            float low = y * s, high = y * c;
            vector[d] = __builtin_fmaf(x, c, -low);
            vector[d + 1] = __builtin_fmaf(x, s, high);
        }
        if (h == group)
            for (int d = 0; d < dim; d++) keys[(int64_t)d * PAGE] = bf16_of(vector[d]);
    }
    const int from = (m->heads + m->kv_heads + kv) * dim;
    for (int d = 0; d < dim; d++) {
        float value = joined[from + d] + (layer->bias ? layer->bias[from + d] : 0.0f);
        values[d / 32 * 32 + place(d % 32)] = bf16_of(value);
    }
}

// What becomes of a tile's sums: stored up to column `limit`, added, or sixteen gates times sixteen others.

INLINE void put_stored(const float *sums, int row, int count, int tile, float *to, int64_t stride, int limit) {
    for (int r = 0; r < count; r++) {
        float *at = to + (row + r) * stride + tile * TILE;
        if (tile * TILE + TILE <= limit) {
            v_store(at, v_load(sums + r * TILE));
            v_store(at + 16, v_load(sums + r * TILE + 16));
        } else {
            memcpy(at, sums + r * TILE, (size_t)(limit - tile * TILE) * sizeof(float));
        }
    }
}

INLINE void put_added(const float *sums, int row, int count, int tile, float *to, int64_t stride) {
    for (int r = 0; r < count; r++) {
        float *at = to + (row + r) * stride + tile * TILE;
        v_store(at, v_add(v_load(at), v_load(sums + r * TILE)));
        v_store(at + 16, v_add(v_load(at + 16), v_load(sums + r * TILE + 16)));
    }
}

INLINE void put_gated(const float *sums, int row, int count, int tile, float *to, int64_t stride) {
    for (int r = 0; r < count; r++) {
        V gate = v_load(sums + r * TILE), silu = v_div(gate, v_add(v_set(1.0f), v_exp(v_sub(v_set(0.0f), gate))));
        v_store(to + (row + r) * stride + tile * 16, v_mul(silu, v_load(sums + r * TILE + 16)));
    }
}

#endif
