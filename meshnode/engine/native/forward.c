// One forward pass of a Llama over rows of any sessions: all layers in one call, without Python in between.
//
// A pass is phases, one after another; the pieces of a phase are computed by whoever has a core. Everything but attention
// is row by row; attention follows page tables. No sum crosses rows, and none depends on which thread computed
// what: the bits of a row are a function of its context.
//
// Whoever calls has checked everything: row counts, positions, pages. Nothing in here allocates but scratch that grows.

#define _GNU_SOURCE
#include <stdlib.h>

#include "rows.h"
#include "sessions.h"

#if defined(__AMX_INT8__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { LONE_ROWS = 4, AMX_ROWS_MIN = 5 };

// ------------------------------------------------------------------------------------------------------------ phases
//
// Each is a function over pieces, and a structure of what it needs. The caller walks through the layers; helpers join.

enum { STORE, ADD, GATED };

typedef struct {
    Engine *of;
    const float *x;
    int64_t stride;
    const int32_t *which;  // rows of x, or NULL for all
    int in, width;
    float eps;
    const float *gain;
} Rounding;

static void round_pieces(void *with, int from, int to, int thread) {
    const Rounding *w = with;
    const int planes = w->of->model.planes;
    (void)thread;
    for (int r = from; r < to; r++) {
        const float *row = w->x + (w->which ? w->which[r] : r) * w->stride;
        quantise(row, w->in, w->width, w->eps, w->gain, planes, w->of->levels + (int64_t)r * planes * w->in, w->of->scales + r);
    }
}

// Few rows are rounded before a helper would have come.
static Rows rounded_rows(Engine *of, const float *x, int64_t stride, int count, const int32_t *which, const Matrix *by, int width, float eps, const float *gain) {
    Rounding work = {of, x, stride, which, by->in, width, eps, gain};
    threads_each(of->threads, count, count <= LONE_ROWS ? LONE_ROWS : 2, round_pieces, &work);
    return (Rows){of->levels, of->scales, of->model.planes, count};
}

typedef struct {
    Engine *of;
    int kind;
    Rows rows;
    const Matrix *by;
    float *to;
    int64_t stride;
    int limit;
} Product;

static void multiply_pieces(void *with, int from, int to, int thread) {
    const Product *w = with;
    float sums[BLOCK_ROWS * TILE];
    (void)thread;
#if defined(__AMX_INT8__)
    const int amx = w->of->amx && w->rows.rows >= AMX_ROWS_MIN;
    if (amx) amx_begin(w->rows.rows);
#endif
    for (int tile = from; tile < to; tile++)
        for (int row = 0; row < w->rows.rows; row += BLOCK_ROWS) {
            const int count = (int)at_most(BLOCK_ROWS, w->rows.rows - row);
#if defined(__AMX_INT8__)
            if (amx && count >= AMX_ROWS_MIN) {
                if (w->rows.planes == 2) products_many(2, &w->rows, w->by, row, tile, sums);
                else products_many(1, &w->rows, w->by, row, tile, sums);
            } else
#endif
                products(&w->rows, w->by, row, count, tile, sums);
            if (w->kind == GATED) put_gated(sums, row, count, tile, w->to, w->stride);
            else if (w->kind == ADD) put_added(sums, row, count, tile, w->to, w->stride);
            else put_stored(sums, row, count, tile, w->to, w->stride, w->limit);
        }
#if defined(__AMX_INT8__)
    if (amx) amx_end();
#endif
}

static void multiply(Engine *of, int kind, Rows rows, const Matrix *by, float *to, int64_t stride, int limit) {
    const int tiles = by->out / TILE, share = tiles / (8 * threads_count(of->threads));
    Product work = {of, kind, rows, by, to, stride, limit};
    threads_each(of->threads, tiles, share > 1 ? share : 1, multiply_pieces, &work);
}

typedef struct {
    Engine *of;
    const Layer *layer;
    int number;
} InLayer;

static void finish_pieces(void *with, int from, int to, int thread) {
    const InLayer *w = with;
    const Pass *pass = w->of->pass;
    const int heads = w->of->model.kv_heads;
    (void)thread;
    for (int piece = from; piece < to; piece++) {
        const Task *task = w->of->tasks + piece / heads;
        if (task->part > 0) continue;
        const int32_t *pages = pass->pages + pass->first_page[task->segment];
        for (int r = task->row; r < task->row + task->count; r++) finish(w->of, w->layer, w->number, r, pages, pass->positions[r], piece % heads);
    }
}

static void attend_pieces(void *with, int from, int to, int thread) {
    const InLayer *w = with;
    const int heads = w->of->model.kv_heads;
    for (int piece = from; piece < to; piece++) {
        const Task *task = w->of->tasks + piece / heads;
        if (task->part < 0) attend_rows(w->of, w->layer, w->number, task, piece % heads, w->of->own[thread]);
        else attend_lone(w->of, w->layer, w->number, task, piece % heads, w->of->own[thread]);
    }
}

static void join_pieces(void *with, int from, int to, int thread) {
    const InLayer *w = with;
    const int heads = w->of->model.heads;
    (void)thread;
    for (int piece = from; piece < to; piece++) join(w->of, w->layer, w->of->tasks + piece / heads, piece % heads);
}

static void embed_pieces(void *with, int from, int to, int thread) {
    Engine *of = with;
    const Model *m = &of->model;
    (void)thread;
    for (int r = from; r < to; r++) embed(&m->embedding, of->pass->tokens[r], m->hidden, of->rows + (int64_t)r * m->layer[0].qkv.in);
}

static void run_layer(Engine *of, int number) {
    const Model *m = &of->model;
    const Layer *layer = m->layer + number;
    const int hidden_in = layer->qkv.in, count = of->pass->rows;
    InLayer here = {of, layer, number};
    Rows rows = rounded_rows(of, of->rows, hidden_in, count, NULL, &layer->qkv, m->hidden, m->eps, NULL);
    multiply(of, STORE, rows, &layer->qkv, of->joined, layer->qkv.out, layer->qkv.out);
    threads_each(of->threads, of->task_count * m->kv_heads, count <= LONE_ROWS ? of->task_count * m->kv_heads : 1, finish_pieces, &here);
    threads_each(of->threads, of->task_count * m->kv_heads, 1, attend_pieces, &here);
    if (of->part_max > 1) threads_each(of->threads, of->task_count * m->heads, 4, join_pieces, &here);
    rows = rounded_rows(of, of->mixed, layer->out.in, count, NULL, &layer->out, 1, -1.0f, NULL);
    multiply(of, ADD, rows, &layer->out, of->rows, hidden_in, 0);
    rows = rounded_rows(of, of->rows, hidden_in, count, NULL, &layer->gate_up, m->hidden, m->eps, NULL);
    multiply(of, GATED, rows, &layer->gate_up, of->act, layer->down.in, 0);
    rows = rounded_rows(of, of->act, layer->down.in, count, NULL, &layer->down, 1, -1.0f, NULL);
    multiply(of, ADD, rows, &layer->down, of->rows, hidden_in, 0);
}

static void run_pass(Engine *of) {
    const Model *m = &of->model;
    const Pass *pass = of->pass;
    const int hidden_in = m->layer[0].qkv.in;
    threads_each(of->threads, pass->rows, 4, embed_pieces, of);
    for (int number = 0; number < m->layers; number++) run_layer(of, number);
    if (!pass->wanted) return;
    Rows rows = rounded_rows(of, of->rows, hidden_in, pass->wanted, pass->wanted_rows, &m->head, m->hidden, m->eps, m->norm);
    multiply(of, STORE, rows, &m->head, pass->logits, m->vocabulary, m->vocabulary);
}

// --------------------------------------------------------------------------------------------------------------- face

// Rows of a prefill that are attended together: the more, the rarer pages are read; the fewer, the more can help.
static int rows_each(int rows) { return rows <= 2 * BLOCK_ROWS ? 4 : BLOCK_ROWS; }

static int plan(Engine *of, const Pass *pass) {
    int count = 0, lone_parts = 1, rows_parts = 1, has_rows = 0;
    for (int s = 0; s < pass->segments; s++) {
        int rows = pass->first_row[s + 1] - pass->first_row[s], last = pass->positions[pass->first_row[s + 1] - 1];
        int parts = last / PART + 1;
        count += rows == 1 ? parts : (rows + rows_each(rows) - 1) / rows_each(rows);
        if (rows == 1) lone_parts = parts > lone_parts ? parts : lone_parts;
        else rows_parts = parts > rows_parts ? parts : rows_parts, has_rows = 1;
    }
    if (count > of->task_max) {
        free(of->tasks);
        of->tasks = malloc((size_t)count * sizeof *of->tasks);
        of->task_max = of->tasks ? count : 0;
    }
    const int group = of->model.heads / of->model.kv_heads;
    int64_t partials = (int64_t)count * of->model.heads * of->stride_partial;
    if (partials > of->partials_max) {
        free(of->partials);
        of->partials = malloc((size_t)partials * sizeof(float));
        of->partials_max = of->partials ? partials : 0;
    }
    int64_t own = QUERIES * PART + (has_rows ? (int64_t)BLOCK_ROWS * group * rows_parts * of->stride_partial : 0)
                  + 64;
    if (own > of->own_max) {
        for (int thread = 0; thread < threads_count(of->threads); thread++) {
            free(of->own[thread]);
            of->own[thread] = aligned_alloc(64, (size_t)rounded((int)(own * 4 / 64) + 1, 1) * 64);
            if (!of->own[thread]) {
                of->own_max = 0;
                return -1;
            }
        }
        of->own_max = own;
    }
    if (!of->tasks || !of->partials) return -1;
    of->task_count = 0;
    of->part_max = lone_parts;
    for (int s = 0; s < pass->segments; s++) {
        int first = pass->first_row[s], rows = pass->first_row[s + 1] - first;
        if (rows == 1)
            for (int part = 0; part <= pass->positions[first] / PART; part++) of->tasks[of->task_count++] = (Task){s, first, 1, part};
        else
            for (int row = 0, each = rows_each(rows); row < rows; row += each)
                of->tasks[of->task_count++] = (Task){s, first + row, (int)at_most(each, rows - row), -1};
    }
    return 0;
}

static void *cleared(int64_t bytes) {
    bytes = (bytes + 127) / 64 * 64;
    void *found = aligned_alloc(64, (size_t)bytes);
    if (found) memset(found, 0, (size_t)bytes);
    return found;
}

void meshnode_close(Engine *of) {
    if (!of) return;
    threads_close(of->threads);
    for (int thread = 0; thread < THREADS_MAX; thread++) free(of->own[thread]);
    free(of->rows), free(of->joined), free(of->mixed), free(of->act), free(of->levels), free(of->scales);
    free(of->tasks), free(of->partials), free(of);
}

Engine *meshnode_open(const Model *model, int threads, int rows_max, int use_amx) {
    Engine *of = calloc(1, sizeof *of);
    if (!of) return NULL;
    of->model = *model;
    of->rows_max = rows_max;
    of->wide = rounded(model->head_dim, 32);
    of->layer_numbers = (int64_t)model->kv_heads * PAGE * (model->head_dim + of->wide);
    of->page_numbers = of->layer_numbers * model->layers;
    of->stride_partial = PARTIAL_HEAD + of->wide;
#if defined(__AMX_INT8__)
    of->amx = use_amx && syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
#else
    (void)use_amx;
#endif
    const Layer *layer = model->layer;
    const int64_t rows = rounded(rows_max, BLOCK_ROWS);
    const int widths[] = {layer->qkv.in, layer->out.in, layer->gate_up.in, layer->down.in, model->head.in};
    for (int i = 0; i < 5; i++) of->in_max = widths[i] > of->in_max ? widths[i] : of->in_max;
    of->rows = cleared(rows * layer->qkv.in * 4);
    of->joined = cleared(rows * layer->qkv.out * 4 + 64);
    of->mixed = cleared(rows * layer->out.in * 4);
    of->act = cleared(rows * layer->down.in * 4);
    of->levels = cleared(rows * 2 * of->in_max);
    of->scales = cleared(rows * 4);
    of->threads = threads_open(threads);
    if (!of->rows || !of->joined || !of->mixed || !of->act || !of->levels || !of->scales || !of->threads) {
        meshnode_close(of);
        return NULL;
    }
    return of;
}

// 0, or -1 if scratch memory could not be had; nothing was written then.
int meshnode_forward(Engine *of, const Pass *pass) {
    of->pass = pass;
    if (plan(of, pass)) return -1;
    run_pass(of);
    return 0;
}

int meshnode_uses_amx(const Engine *of) { return of->amx; }

// ------------------------------------------------------------------------------------------------------------- pages

// Between a page in the pool and [layer][k|v][slot][head][dim], which is what travels.
void meshnode_page(int layers, int heads, int dim, uint16_t *page, uint16_t *wire, int inwards) {
    const int wide = rounded(dim, 32);
    const int64_t keys_numbers = (int64_t)heads * dim * PAGE, values_numbers = (int64_t)heads * PAGE * wide;
    for (int layer = 0; layer < layers; layer++) {
        uint16_t *keys = page + layer * (keys_numbers + values_numbers), *values = keys + keys_numbers;
        uint16_t *wire_keys = wire + layer * 2 * keys_numbers, *wire_values = wire_keys + keys_numbers;
        for (int head = 0; head < heads; head++)
            for (int slot = 0; slot < PAGE; slot++)
                for (int d = 0; d < dim; d++) {
                    int64_t outside = ((int64_t)slot * heads + head) * dim + d;
                    uint16_t *k = keys + ((int64_t)head * dim + d) * PAGE + place(slot);
                    uint16_t *v = values + ((int64_t)head * PAGE + slot) * wide + d / 32 * 32 + place(d % 32);
                    if (inwards) *k = wire_keys[outside], *v = wire_values[outside];
                    else wire_keys[outside] = *k, wire_values[outside] = *v;
                }
    }
}

// Rows of int8, [out][in], to tiles; `in` and `out` padded with zeros.
void meshnode_pack(const int8_t *rows, int out, int in, int8_t *tiles, int padded_in) {
    const int padded_out = rounded(out, TILE);
    memset(tiles, 0, (size_t)padded_out * padded_in);
    for (int n = 0; n < out; n++) {
        int8_t *tile = tiles + (int64_t)(n / TILE) * padded_in * TILE + n % TILE * 4;
        const int8_t *row = rows + (int64_t)n * in;
        for (int k = 0; k < in; k += 4) memcpy(tile + (int64_t)k * TILE, row + k, (size_t)at_most(4, in - k));
    }
}
