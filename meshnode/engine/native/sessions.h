// Attention of one task: some rows of a prefill with all they see, or a part of what a lone row sees.

#ifndef MESHNODE_SESSIONS_H
#define MESHNODE_SESSIONS_H

#include "model.h"

static Context context_of(const Engine *of, const Task *task, int number, int kv) {
    const Model *m = &of->model;
    int64_t base = number * of->layer_numbers;
    return (Context){
        m->pool, of->pass->pages + of->pass->first_page[task->segment], of->page_numbers,
        base + (int64_t)kv * m->head_dim * PAGE,
        base + (int64_t)m->kv_heads * m->head_dim * PAGE + (int64_t)kv * PAGE * of->wide,
        m->head_dim, of->wide,
    };
}

static Query query_of(const Engine *of, const Layer *layer, int row, int head) {
    const int position = of->pass->positions[row], window = of->model.window;
    const int from = window && position + 1 > window ? position + 1 - window : 0;
    return (Query){of->joined + (int64_t)row * layer->qkv.out + head * of->model.head_dim, from, position + 1};
}

static float *out_of(const Engine *of, const Layer *layer, int row, int head) {
    return of->mixed + (int64_t)row * layer->out.in + head * of->model.head_dim;
}

static void attend_rows(Engine *of, const Layer *layer, int number, const Task *task, int kv, float *own) {
    const int group = of->model.heads / of->model.kv_heads, total = task->count * group;
    const Context context = context_of(of, task, number, kv);
    const int parts = (of->pass->positions[task->row + task->count - 1]) / PART + 1;
    float *scores = own, *partials = own + QUERIES * PART;  // [query][part][partial]
    for (int part = 0; part < parts; part++)
        for (int first = 0; first < total; first += QUERIES) {
            int count = (int)at_most(QUERIES, total - first);
            Query queries[QUERIES];
            float *out[QUERIES];
            for (int q = 0; q < count; q++) {
                queries[q] = query_of(of, layer, task->row + (first + q) / group, kv * group + (first + q) % group);
                out[q] = partials + ((int64_t)(first + q) * parts + part) * of->stride_partial;
            }
            attend_part(count, &context, queries, part * PART, scores, out);
        }
    for (int q = 0; q < total; q++)
        join_parts(partials + (int64_t)q * parts * of->stride_partial, of->stride_partial, parts, of->model.head_dim, of->wide,
                   out_of(of, layer, task->row + q / group, kv * group + q % group));
}

// A lone row and one of its parts. With one part it is joined at once, else by `join`.
static void attend_lone(Engine *of, const Layer *layer, int number, const Task *task, int kv, float *own) {
    const int group = of->model.heads / of->model.kv_heads, parts = of->pass->positions[task->row] / PART + 1;
    const Context context = context_of(of, task, number, kv);
    const int64_t index = (task - of->tasks) * of->model.kv_heads + kv;
    for (int first = 0; first < group; first += QUERIES) {
        int count = (int)at_most(QUERIES, group - first);
        Query queries[QUERIES];
        float *out[QUERIES];
        for (int q = 0; q < count; q++) {
            queries[q] = query_of(of, layer, task->row, kv * group + first + q);
            out[q] = of->partials + (index * group + first + q) * of->stride_partial;
        }
        attend_part(count, &context, queries, task->part * PART, own, out);
        if (parts == 1)
            for (int q = 0; q < count; q++)
                join_parts(out[q], 0, 1, of->model.head_dim, of->wide, out_of(of, layer, task->row, kv * group + first + q));
    }
}

static void join(Engine *of, const Layer *layer, const Task *task, int head) {
    const int group = of->model.heads / of->model.kv_heads, parts = of->pass->positions[task->row] / PART + 1;
    if (task->part != 0 || parts == 1) return;
    const int64_t index = (task - of->tasks) * of->model.kv_heads + head / group, stride = (int64_t)of->model.heads * of->stride_partial;
    join_parts(of->partials + (index * group + head % group) * of->stride_partial, stride, parts, of->model.head_dim, of->wide,
               out_of(of, layer, task->row, head));
}

#endif
