// What a model is, what a pass is, and what an engine keeps between passes. native/library.py mirrors the first three.

#ifndef MESHNODE_MODEL_H
#define MESHNODE_MODEL_H

#include "attention.h"
#include "products.h"
#include "threads.h"

typedef struct {
    Matrix qkv, out, gate_up, down;
    const float *bias;  // [joined], or NULL
    const float *gain;  // [heads + kv_heads][dim], or NULL
} Layer;

typedef struct {
    int32_t layers, hidden, heads, kv_heads, head_dim, vocabulary;
    int32_t window;     // tokens that a token sees, itself included; 0: all
    int32_t planes;     // 2: 16-bit activations, 1: 8-bit
    float eps;
    const Layer *layer;
    Matrix embedding, head;
    const float *norm;  // [hidden]
    const float *turns; // [position][dim / 2][cos, sin]
    uint16_t *pool;     // [page][layer][keys of all heads, values of all heads]
} Model;

typedef struct {
    int32_t rows, segments, wanted;
    const int32_t *tokens, *positions;   // [row]
    const int32_t *first_row;            // [segment + 1]
    const int32_t *first_page;           // [segment + 1]
    const int32_t *pages;                // of all segments
    const int32_t *wanted_rows;          // [wanted]
    float *logits;                       // [wanted][vocabulary]
} Pass;

typedef struct { int32_t segment, row, count, part; } Task;  // part -1: rows of a prefill, with all of their parts

typedef struct {
    Model model;
    Threads *threads;
    int amx, rows_max, wide;
    int64_t layer_numbers, page_numbers, stride_partial;
    float *rows;         // [row][hidden]
    float *joined;       // [row][queries, keys, values]
    float *mixed;        // [row][heads * dim]
    float *act;          // [row][ffn]
    uint8_t *levels;     // [row][plane][in]
    float *scales;       // [row]
    int64_t in_max;
    // Of one pass:
    const Pass *pass;
    Task *tasks;
    int task_count, task_max, part_max;
    float *partials;     // [task][kv head][group][partial], of lone rows with several parts
    int64_t partials_max;
    float *own[THREADS_MAX];
    int64_t own_max;
} Engine;

static int rounded(int number, int to) { return (number + to - 1) / to * to; }
static int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

#endif
