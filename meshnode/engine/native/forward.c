// One forward pass of a Llama over rows of any sessions: all layers in one call, without Python in between.
//
// A pass is phases with a barrier after each; within a phase, pieces of work are taken from a counter. Everything but
// attention is row by row; attention follows page tables. No sum crosses rows, and none depends on which thread computed
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

enum { PRIVATE_ROWS = 4, AMX_ROWS_MIN = 5 };

// ------------------------------------------------------------------------------------------------------------ phases

typedef struct {
    Engine *of;
    float *own;
    uint8_t *levels;   // of this thread, for few rows
    float *scales;
    int phase;
} Thread;

static int take(Thread *t, int grain) { return atomic_fetch_add_explicit(&t->of->next[t->phase], grain, memory_order_relaxed); }

static void end_phase(Thread *t) {
    threads_meet(t->of->threads);
    t->phase++;
}

#define WORK(index, total, grain) \
    for (int index##_from = take(t, grain); index##_from < (total); index##_from = take(t, grain)) \
        for (int index = index##_from; index < (total) && index < index##_from + (grain); index++)

// Few rows: each thread rounds them all for itself, which is quicker than to meet. Many: shared out, with a meeting.
static Rows rounded_rows(Thread *t, const float *x, int64_t stride, int count, const int32_t *which, const Matrix *by, int width, float eps, const float *gain) {
    Engine *of = t->of;
    const int planes = of->model.planes, in = by->in;
    if (count <= PRIVATE_ROWS) {
        for (int r = 0; r < count; r++)
            quantise(x + (which ? which[r] : r) * stride, in, width, eps, gain, planes, t->levels + (int64_t)r * planes * in, t->scales + r);
        return (Rows){t->levels, t->scales, planes, count};
    }
    WORK(r, count, 2) quantise(x + (which ? which[r] : r) * stride, in, width, eps, gain, planes, of->levels + (int64_t)r * planes * in, of->scales + r);
    end_phase(t);
    return (Rows){of->levels, of->scales, planes, count};
}

static void multiply(Thread *t, const int kind, const Rows *rows, const Matrix *by, float *to, int64_t stride, int limit) {
    float sums[BLOCK_ROWS * TILE];
    const int tiles = by->out / TILE, share = tiles / (8 * threads_count(t->of->threads)), grain = share > 1 ? share : 1;
    WORK(tile, tiles, grain) {
        for (int row = 0; row < rows->rows; row += BLOCK_ROWS) {
            int count = (int)at_most(BLOCK_ROWS, rows->rows - row);
#if defined(__AMX_INT8__)
            if (t->of->amx && count >= AMX_ROWS_MIN) {
                if (rows->planes == 2) products_many(2, rows, by, row, tile, sums);
                else products_many(1, rows, by, row, tile, sums);
            } else
#endif
                products(rows, by, row, count, tile, sums);
            if (kind == GATED) put(GATED, sums, row, count, tile, to, stride, limit);
            else if (kind == ADD) put(ADD, sums, row, count, tile, to, stride, limit);
            else put(STORE, sums, row, count, tile, to, stride, limit);
        }
    }
    end_phase(t);
}

static void run_layer(Thread *t, int number) {
    Engine *of = t->of;
    const Model *m = &of->model;
    const Layer *layer = m->layer + number;
    const Pass *pass = of->pass;
    const int hidden_in = layer->qkv.in, count = pass->rows;

    Rows rows = rounded_rows(t, of->rows, hidden_in, count, NULL, &layer->qkv, m->hidden, m->eps, NULL);
    multiply(t, STORE, &rows, &layer->qkv, of->joined, layer->qkv.out, layer->qkv.out);

    WORK(piece, of->task_count * m->kv_heads, 1) {
        const Task *task = of->tasks + piece / m->kv_heads;
        if (task->part <= 0)
            for (int r = task->row; r < task->row + task->count; r++)
                finish(of, layer, number, r, pass->pages + pass->first_page[task->segment], pass->positions[r], piece % m->kv_heads);
    }
    end_phase(t);

    WORK(piece, of->task_count * m->kv_heads, 1) {
        const Task *task = of->tasks + piece / m->kv_heads;
        if (task->part < 0) attend_rows(of, layer, number, task, piece % m->kv_heads, t->own);
        else attend_lone(of, layer, number, task, piece % m->kv_heads, t->own);
    }
    end_phase(t);
    if (of->part_max > 1) {
        WORK(piece, of->task_count * m->heads, 4) {
            const Task *task = of->tasks + piece / m->heads;
            if (task->part == 0) join(of, layer, task, piece % m->heads);
        }
        end_phase(t);
    }

    rows = rounded_rows(t, of->mixed, layer->out.in, count, NULL, &layer->out, 1, -1.0f, NULL);
    multiply(t, ADD, &rows, &layer->out, of->rows, hidden_in, 0);
    rows = rounded_rows(t, of->rows, hidden_in, count, NULL, &layer->gate_up, m->hidden, m->eps, NULL);
    multiply(t, GATED, &rows, &layer->gate_up, of->act, layer->down.in, 0);
    rows = rounded_rows(t, of->act, layer->down.in, count, NULL, &layer->down, 1, -1.0f, NULL);
    multiply(t, ADD, &rows, &layer->down, of->rows, hidden_in, 0);
}

static void run_pass(void *with, int thread) {
    Engine *of = with;
    const Model *m = &of->model;
    const Pass *pass = of->pass;
    Thread me = {of, of->own[thread], NULL, NULL, 0}, *t = &me;
    me.levels = (uint8_t *)(me.own + of->own_max - (of->in_max * 2 * BLOCK_ROWS + 64) / 4);
    float scales[BLOCK_ROWS];
    me.scales = scales;
#if defined(__AMX_INT8__)
    if (of->amx) amx_begin(pass->rows);
#endif
    WORK(row, pass->rows, 1) embed(&m->embedding, pass->tokens[row], m->hidden, of->rows + (int64_t)row * m->layer[0].qkv.in);
    end_phase(t);
    for (int number = 0; number < m->layers; number++) run_layer(t, number);
    if (pass->wanted) {
        Rows rows = rounded_rows(t, of->rows, m->layer[0].qkv.in, pass->wanted, pass->wanted_rows, &m->head, m->hidden, m->eps, m->norm);
        multiply(t, STORE, &rows, &m->head, pass->logits, m->vocabulary, m->vocabulary);
    }
#if defined(__AMX_INT8__)
    if (of->amx) amx_end();
#endif
}

// --------------------------------------------------------------------------------------------------------------- face

static int plan(Engine *of, const Pass *pass) {
    const int rows_each = BLOCK_ROWS;
    int count = 0, lone_parts = 1, rows_parts = 1, has_rows = 0;
    for (int s = 0; s < pass->segments; s++) {
        int rows = pass->first_row[s + 1] - pass->first_row[s], last = pass->positions[pass->first_row[s + 1] - 1];
        int parts = last / PART + 1;
        count += rows == 1 ? parts : (rows + rows_each - 1) / rows_each;
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
    int64_t own = QUERIES * PART + (has_rows ? (int64_t)rows_each * group * rows_parts * of->stride_partial : 0)
                  + (of->in_max * 2 * BLOCK_ROWS + 64) / 4 + 64;
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
            for (int row = 0; row < rows; row += rows_each)
                of->tasks[of->task_count++] = (Task){s, first + row, (int)at_most(rows_each, rows - row), -1};
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
    free(of->tasks), free(of->partials), free((void *)of->next), free(of);
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
    of->phase_max = model->layers * 11 + 4;
    of->next = cleared((int64_t)of->phase_max * sizeof *of->next);
    of->threads = threads_open(threads);
    if (!of->rows || !of->joined || !of->mixed || !of->act || !of->levels || !of->scales || !of->next || !of->threads) {
        meshnode_close(of);
        return NULL;
    }
    return of;
}

// 0, or -1 if scratch memory could not be had; nothing was written then.
int meshnode_forward(Engine *of, const Pass *pass) {
    of->pass = pass;
    if (plan(of, pass)) return -1;
    memset((void *)of->next, 0, (size_t)of->phase_max * sizeof *of->next);
    threads_run(of->threads, run_pass, of);
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
