/* Memory for rows that pass through a model, and the operations that all rows share. workspace.c allocates it. */
#ifndef AUDIOLM_WORKSPACE_H
#define AUDIOLM_WORKSPACE_H

#include "attention.h"
#include "kernel.h"
#include "products.h"

enum { TILE = 64 }; /* rows that share a read of the weights */

typedef struct {
    audiolm_model model;
    audiolm_sampling sampling;
    int finite;
    size_t inner, qkv_stride, logits_stride, scores_stride;
    /* for a tile */
    float scale[TILE];
    activation *q; /* [TILE][inner] */
    float *up, *logits, *scores, *normal; /* normal: [TILE][width] */
    uint32_t *words;
    /* for all rows */
    float *x, *qkv, *sine, *cosine;
    float *attended; /* [rows][heads * head_width] */
} workspace;

/* Allocates for `rows` rows, at least a tile, whose attention reads up to `longest` positions; 0 without memory. */
int make_workspace(workspace *w, const audiolm_model *model, const audiolm_sampling *sampling, size_t rows,
                   size_t longest);
void free_workspace(workspace *w);

/* Quantizes up to a tile of rows `[rows][width]`, `stride` apart, into the workspace. */
static inline void quantize_rows(workspace *w, int32_t rows, const float *x, size_t stride, int32_t width) {
    for (int32_t r = 0; r < rows; r++)
        w->finite &= quantize(x + (size_t)r * stride, width, w->q + (size_t)r * w->inner, w->scale + r);
}

static inline void normalize_row(const audiolm_norm *norm, const float *x, float *y, int32_t width) {
    normalize(x, norm->weight, norm->bias, norm->epsilon, y, width);
}

static inline void normalize_rows(const audiolm_norm *norm, int32_t rows, const float *x, float *y, int32_t width) {
    for (int32_t r = 0; r < rows; r++)
        normalize_row(norm, x + (size_t)r * (size_t)width, y + (size_t)r * (size_t)width, width);
}

static inline void multiply_rows(workspace *w, const audiolm_matrix *m, int32_t rows, float *y, size_t stride,
                                 enum result result) {
    product(m, 0, m->outputs / OUTPUTS, rows, w->q, w->inner, w->scale, y, stride, result);
}

/* Sine and cosine of a row's rotation angles at a position. */
static inline void find_turns(workspace *w, int32_t row, int32_t position) {
    int32_t half = w->model.head_width / 2;
    float *sine = w->sine + (size_t)row * (size_t)half, *cosine = w->cosine + (size_t)row * (size_t)half;
    for (int32_t n = 0; n < half; n++) sine_cosine((double)position * w->model.turns[n], sine + n, cosine + n);
}

/* Queries, keys and values of a tile of rows. */
static inline void project(workspace *w, const audiolm_block *b, int32_t first, int32_t rows) {
    size_t width = (size_t)w->model.width;
    normalize_rows(&b->attention_norm, rows, w->x + (size_t)first * width, w->normal, w->model.width);
    quantize_rows(w, rows, w->normal, width, w->model.width);
    multiply_rows(w, &b->qkv, rows, w->qkv + (size_t)first * w->qkv_stride, w->qkv_stride, REPLACE);
}

/* Normalises, where there are norms, and rotates a row's queries and keys; stores keys and values at a position of a
 * layer's KV cache with `room` positions. */
static inline void place_row(workspace *w, const audiolm_block *b, int32_t row, float *keys, float *values,
                             int32_t place, size_t room) {
    const audiolm_model *m = &w->model;
    int32_t width = m->head_width, half = width / 2;
    float *query = w->qkv + (size_t)row * w->qkv_stride, *key = query + m->heads * width;
    const float *sine = w->sine + (size_t)row * (size_t)half, *cosine = w->cosine + (size_t)row * (size_t)half;
    float scale = 1.0f / root((float)width);
    for (int32_t h = 0; h < m->heads && b->query_norm.weight; h++)
        normalize_row(&b->query_norm, query + h * width, query + h * width, width);
    for (int32_t h = 0; h < m->kv_heads && b->key_norm.weight; h++)
        normalize_row(&b->key_norm, key + h * width, key + h * width, width);
    for (int32_t h = 0; h < m->heads; h++) rotate(query + h * width, sine, cosine, half, scale);
    for (int32_t h = 0; h < m->kv_heads; h++, key += width) {
        size_t start = (size_t)h * room * (size_t)width;
        rotate(key, sine, cosine, half, 1.0f);
        keep_key(keys + start, key, place, width);
        keep_value(values + start, key + m->kv_heads * width, place, width, room);
    }
}

/* Adds a tile's attention output, and the feed-forward part. */
static inline void finish(workspace *w, const audiolm_block *b, int32_t first, int32_t rows) {
    const audiolm_model *m = &w->model;
    size_t width = (size_t)m->width, joined = (size_t)(m->heads * m->head_width), up = (size_t)b->up.outputs;
    float *x = w->x + (size_t)first * width;
    quantize_rows(w, rows, w->attended + (size_t)first * joined, joined, (int32_t)joined);
    multiply_rows(w, &b->output, rows, x, width, ADD);
    normalize_rows(&b->feedforward_norm, rows, x, w->normal, m->width);
    quantize_rows(w, rows, w->normal, width, m->width);
    multiply_rows(w, &b->up, rows, w->up, up, REPLACE);
    for (int32_t r = 0; r < rows; r++)
        if (m->gated)
            gate_row(w->up + (size_t)r * up, m->feedforward);
        else
            gelu_row(w->up + (size_t)r * up, m->feedforward);
    quantize_rows(w, rows, w->up, up, m->feedforward);
    multiply_rows(w, &b->down, rows, x, width, ADD);
}

/* Logits of the ids from `id` on for a tile's int8 rows, logits_stride apart; returns where they begin. */
static inline float *find_logits(workspace *w, int32_t id, int32_t first, int32_t rows) {
    int32_t blocks = (id % OUTPUTS + w->sampling.size + OUTPUTS - 1) / OUTPUTS;
    product(&w->model.head, id / OUTPUTS, blocks, rows, w->q + (size_t)first * w->inner, w->inner, w->scale + first,
            w->logits, w->logits_stride, REPLACE);
    return w->logits + id % OUTPUTS;
}

#endif
