// Attention over pages, in float32, in an order that is a function of positions alone.
//
// A page holds, for each layer, the keys of each head as [dim][slot] and the values as [slot][dim], so that every lane of
// a register belongs to one slot, or to one dimension: sums go along time and never across lanes. Bfloat16 is widened by
// a shift (even places) and a mask (odd places); so what stands at place i of 32 is written to `place(i)`.
//
// The context is cut into parts of 256 slots. Each part gives its greatest score, its sum of exponentials and its mixed
// values; the parts are joined in their order. So a lone decode row may be computed by several threads, a part each, and
// has the bits that the same row has in the middle of a prefill.

#ifndef MESHNODE_ATTENTION_H
#define MESHNODE_ATTENTION_H

#include "simd.h"

enum { PAGE = 32, PART = 256, QUERIES = 6 };

INLINE int place(int i) { return i % 16 * 2 + i / 16; }

typedef struct {
    const float *vector;   // [dim], after rope, scaled
    int from, to;          // slots of the context that it sees
} Query;

typedef struct {
    const uint16_t *pool;
    const int32_t *pages;      // of the session
    int64_t page_numbers;      // of a whole page
    int64_t keys, values;      // where this head's keys and values begin in a page, in this layer
    int dim, wide;             // wide: dim padded to 32, a row of values
} Context;

INLINE const uint16_t *page_of(const Context *of, int page) { return of->pool + of->pages[page] * of->page_numbers; }

INLINE void scores_of_page(const int count, const Query *queries, const uint16_t *keys, int dim, float *scores) {
    V even[QUERIES], odd[QUERIES];
    for (int q = 0; q < count; q++) even[q] = odd[q] = v_set(0.0f);
    for (int d = 0; d < dim; d++) {
        V low, high;
        v_load_pairs(keys + d * PAGE, &low, &high);
        for (int q = 0; q < count; q++) {
            V by = v_set(queries[q].vector[d]);
            even[q] = v_fma(by, low, even[q]);
            odd[q] = v_fma(by, high, odd[q]);
        }
    }
    for (int q = 0; q < count; q++) {
        v_store(scores + q * PART, even[q]);
        v_store(scores + q * PART + 16, odd[q]);
    }
}

INLINE void mixed_of_pages(const int count, const Context *of, int part, int from, int to, int group, const float *chances, float *const *out) {
    V even[QUERIES], odd[QUERIES];
    for (int q = 0; q < count; q++) even[q] = odd[q] = v_set(0.0f);
    for (int start = from / PAGE * PAGE; start < to; start += PAGE) {
        const uint16_t *values = page_of(of, (part + start) / PAGE) + of->values + group * 32;
        int first = start < from ? from - start : 0, last = to - start < PAGE ? to - start : PAGE;
        for (int slot = first; slot < last; slot++) {
            V low, high;
            v_load_pairs(values + (int64_t)slot * of->wide, &low, &high);
            for (int q = 0; q < count; q++) {
                V by = v_set(chances[q * PART + start + slot]);
                even[q] = v_fma(by, low, even[q]);
                odd[q] = v_fma(by, high, odd[q]);
            }
        }
    }
    for (int q = 0; q < count; q++) {
        v_store(out[q] + group * 32, even[q]);
        v_store(out[q] + group * 32 + 16, odd[q]);
    }
}

// What one part gives one query: [greatest, sum, 14 unused, mixed values]; the greatest is -inf where it sees nothing.
enum { PARTIAL_HEAD = 16 };

INLINE void part_of(const int count, const Context *of, const Query *queries, int part, float *scores, float *const *partials) {
    int from = PART, to = 0;
    for (int q = 0; q < count; q++) {
        int begin = queries[q].from - part, end = queries[q].to - part;
        begin = begin < 0 ? 0 : begin, end = end > PART ? PART : end;
        if (begin < end && begin < from) from = begin;
        if (begin < end && end > to) to = end;
    }
    float *out[QUERIES];
    for (int q = 0; q < count; q++) {
        out[q] = partials[q] + PARTIAL_HEAD;
        partials[q][0] = -__builtin_inff();
        partials[q][1] = 0.0f;
    }
    if (from >= to) return;
    for (int start = from / PAGE * PAGE; start < to; start += PAGE)
        scores_of_page(count, queries, page_of(of, (part + start) / PAGE) + of->keys, of->dim, scores + start);
    for (int q = 0; q < count; q++) {
        float *mine = scores + q * PART;
        V most = v_set(-__builtin_inff());
        for (int start = from / PAGE * PAGE; start < to; start += 16) {
            V masked = v_lanes(v_load(mine + start), queries[q].from - part - start, queries[q].to - part - start, -__builtin_inff());
            v_store(mine + start, masked);
            most = v_max(most, masked);
        }
        float greatest = v_greatest(most);
        V shift = v_set(greatest == -__builtin_inff() ? 0.0f : greatest), sum = v_set(0.0f);
        for (int start = from / PAGE * PAGE; start < to; start += 16) {
            V chance = v_exp(v_sub(v_load(mine + start), shift));
            v_store(mine + start, chance);
            sum = v_add(sum, chance);
        }
        // The last half page, where it was not looked at: nobody reads what lies there.
        partials[q][0] = greatest;
        partials[q][1] = v_sum(sum);
    }
    for (int group = 0; group < of->wide / 32; group++) mixed_of_pages(count, of, part, from, to, group, scores, out);
}

static void attend_part(int count, const Context *of, const Query *queries, int part, float *scores, float *const *partials) {
    switch (count) {
        case 1: part_of(1, of, queries, part, scores, partials); break;
        case 2: part_of(2, of, queries, part, scores, partials); break;
        case 3: part_of(3, of, queries, part, scores, partials); break;
        case 4: part_of(4, of, queries, part, scores, partials); break;
        case 5: part_of(5, of, queries, part, scores, partials); break;
        case 6: part_of(6, of, queries, part, scores, partials); break;
    }
}

// Parts in their order, `stride` floats apart, to one vector of `dim` numbers.
static void join_parts(const float *partials, int64_t stride, int count, int dim, int wide, float *out) {
    float greatest = -__builtin_inff();
    for (int p = 0; p < count; p++) greatest = partials[p * stride] > greatest ? partials[p * stride] : greatest;
    float sum = 0.0f, weight[16];
    V mixed[16];
    for (int at = 0; at < wide; at += 256) {
        int groups = (wide - at < 256 ? wide - at : 256) / 16;
        for (int g = 0; g < groups; g++) mixed[g] = v_set(0.0f);
        sum = 0.0f;
        for (int p = 0; p < count; p++) {
            const float *partial = partials + p * stride;
            if (partial[0] == -__builtin_inff()) continue;
            V by = v_exp(v_set(partial[0] - greatest));
            v_store(weight, by);
            sum = __builtin_fmaf(partial[1], weight[0], sum);
            for (int g = 0; g < groups; g++) mixed[g] = v_fma(v_load(partial + PARTIAL_HEAD + at + g * 16), by, mixed[g]);
        }
        V share = v_set(1.0f / sum);
        for (int g = 0; g < groups; g++) {
            float numbers[16];
            v_store(numbers, v_mul(mixed[g], share));
            for (int i = 0; i < 16 && at + g * 16 + i < dim; i++) out[at + g * 16 + i] = numbers[i];
        }
    }
}

#endif
