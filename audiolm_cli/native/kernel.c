#include "kernel.h"

#include <fenv.h>
#include <stdlib.h>

#include "checks.h"
#include "sampling.h"
#include "session.h"

#ifndef KERNEL_SOURCE
#define KERNEL_SOURCE ""
#endif

const char *audiolm_source(void) { return KERNEL_SOURCE; }

const char *audiolm_kernel(void) {
#if defined(KERNEL_AVX512)
    return "avx512";
#elif defined(KERNEL_AVX2)
    return "avx2";
#else
    return "plain";
#endif
}

size_t audiolm_layout(void) {
    return sizeof(audiolm_matrix) + sizeof(audiolm_norm) + sizeof(audiolm_block) + sizeof(audiolm_level) +
           sizeof(audiolm_model) + sizeof(audiolm_branch) + sizeof(audiolm_item) + sizeof(audiolm_sampling) +
           sizeof(audiolm_window);
}

int audiolm_supports(const char *kernel) {
#ifdef __x86_64__
    if (!strcmp(kernel, "avx2")) return __builtin_cpu_supports("avx2") != 0;
    if (!strcmp(kernel, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vnni");
#endif
    return !strcmp(kernel, "plain");
}

/* -------------------------------------------------------------------------------------------------- products */

int audiolm_product(const audiolm_matrix *weights, int32_t rows, const float *x, float *y) {
    if (!weights || rows < 0 || !x || !y || !good_matrix(weights, weights->outputs, weights->inputs))
        return AUDIOLM_BAD_SIZE;
    size_t inputs = (size_t)weights->inputs, outputs = (size_t)weights->outputs;
    activation *q = malloc(TILE * inputs * sizeof *q);
    if (!q) return AUDIOLM_NO_MEMORY;
    fenv_t before;
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    int finite = 1;
    for (int32_t done = 0; done < rows; done += TILE) {
        int32_t some = rows - done < TILE ? rows - done : TILE;
        float scale[TILE];
        for (int32_t r = 0; r < some; r++)
            finite &= quantize(x + (size_t)(done + r) * inputs, weights->inputs, q + (size_t)r * inputs, scale + r);
        product(weights, 0, weights->outputs / OUTPUTS, some, q, inputs, scale, y + (size_t)done * outputs, outputs,
                REPLACE);
    }
    fesetenv(&before);
    free(q);
    return finite ? 0 : AUDIOLM_NOT_FINITE;
}

/* ------------------------------------------------------------------------------------------------------ rows */

/* The offset of a layer in a cache. */
static size_t cache_place(const audiolm_model *m, const slot *to, int32_t layer) {
    return (size_t)layer * (size_t)m->kv_heads * to->length * (size_t)m->head_width;
}

/* The first `length` positions of a head in a cache. */
static stretch cached(const audiolm_model *m, const slot *from, int32_t layer, int32_t head, int32_t length) {
    size_t start = cache_place(m, from, layer) + (size_t)head * from->length * (size_t)m->head_width;
    return (stretch){from->keys + start, from->values + start, from->length, length};
}

static void attend_row(audiolm_session *s, int32_t layer, int32_t row) {
    workspace *w = &s->work;
    const audiolm_model *m = &w->model;
    int32_t group = m->heads / m->kv_heads;
    size_t width = (size_t)m->head_width, joined = (size_t)m->heads * width;
    const slot *own = s->row_slot[row];
    int32_t shared = own->branch->shared;
    for (int32_t h = 0; h < m->kv_heads; h++) {
        stretch parts[2];
        int count = 0;
        if (shared) parts[count++] = cached(m, own->like, layer, h, shared);
        parts[count++] = cached(m, own, layer, h, s->row_place[row] + 1 - shared);
        size_t head = (size_t)(h * group) * width;
        attend(group, w->qkv + (size_t)row * w->qkv_stride + head, width, parts, count, m->head_width, w->scores,
               w->scores_stride, w->attended + (size_t)row * joined + head, width);
    }
}

/* Runs the tile's rows `x` through all blocks. The last `keep` rows end up in `x` and, after the final norm, in their
 * slots' `hidden`; of the others only the cache entries are needed. */
static void forward(audiolm_session *s, int32_t rows, int32_t keep) {
    workspace *w = &s->work;
    const audiolm_model *m = &w->model;
    for (int32_t r = 0; r < rows; r++) find_turns(w, r, s->row_slot[r]->branch->positions[s->row_place[r]]);
    for (int32_t layer = 0; layer < m->layers; layer++) {
        const audiolm_block *b = m->blocks + layer;
        project(w, b, 0, rows);
        for (int32_t r = 0; r < rows; r++) {
            slot *to = s->row_slot[r];
            size_t start = cache_place(m, to, layer);
            place_row(w, b, r, to->keys + start, to->values + start, s->row_place[r] - to->branch->shared, to->length);
        }
        int32_t first = layer + 1 < m->layers ? 0 : rows - keep;
        for (int32_t r = first; r < rows; r++) attend_row(s, layer, r);
        finish(w, b, first, rows - first);
    }
    for (int32_t r = rows - keep; r < rows; r++)
        normalize_row(&m->norm, w->x + (size_t)r * (size_t)m->width, s->row_slot[r]->hidden, m->width);
}

/* Makes a position of a slot, with its ids, the tile's row number `row`. */
static void enter(audiolm_session *s, int32_t row, slot *to, int32_t place, const int32_t *ids) {
    const audiolm_model *m = &s->work.model;
    size_t width = (size_t)m->width;
    float *x = s->work.x + (size_t)row * width;
    s->row_slot[row] = to;
    s->row_place[row] = place;
    memcpy(x, m->ids + (size_t)ids[0] * width, width * sizeof *x);
    for (int32_t q = 1; q < m->quantizers; q++)
        add_row(x, m->ids + (size_t)(q * m->vocabulary + ids[q]) * width, m->width);
    if (to->branch->features) add_row(x, to->branch->features + (size_t)place * width, m->width);
}

/* ---------------------------------------------------------------------------------------------------- a step */

/* Hidden states after a level's norm, for the next codes: from the rows' slots' `hidden` and the sums of their codes'
 * embeddings so far. The result is in `normal`. */
static void climb(audiolm_session *s, const audiolm_level *level, int32_t rows) {
    workspace *w = &s->work;
    int32_t wide = w->model.width;
    size_t width = (size_t)wide;
    for (int32_t r = 0; r < rows; r++) {
        float *both = s->both + 2 * width * (size_t)r;
        memcpy(both, s->row_slot[r]->hidden, width * sizeof *both);
        memcpy(w->x + (size_t)r * width, both, width * sizeof *both);
        normalize_row(&level->codes_norm, s->before + (size_t)r * width, both + width, wide);
    }
    quantize_rows(w, rows, s->both, 2 * width, 2 * wide);
    multiply_rows(w, &level->up, rows, s->both, width, REPLACE);
    for (int32_t r = 0; r < rows; r++) gelu_row(s->both + (size_t)r * width, wide);
    quantize_rows(w, rows, s->both, width, wide);
    multiply_rows(w, &level->down, rows, w->x, width, ADD);
    normalize_rows(&level->norm, rows, w->x, w->normal, wide);
}

/* Classifier-free guidance of an item's logits by those of its guides, in the rows after it. */
static void guide(const audiolm_session *s, float *logits) {
    const audiolm_sampling *how = &s->work.sampling;
    for (int32_t n = 0; n < how->size; n += LANES) {
        f8 own = load(logits + n), less = every(0);
        for (int32_t g = 0; g < how->guides; g++)
            less = less + how->shares[g] * load(logits + (size_t)(g + 1) * s->work.logits_stride + n);
        store(logits + n, own + how->guidance * (own - less));
    }
}

/* Samples an item's next code from its branches' logits. */
static void draw_code(audiolm_session *s, int32_t number, int32_t q, float *logits) {
    const audiolm_item *item = s->items + number;
    int32_t step = s->made[number];
    size_t place = (size_t)step * (size_t)s->work.model.quantizers + (size_t)q;
    if (item->branches > 1) guide(s, logits);
    item->made[place] = item->lows[step] + sample(logits, item->uniform[place], &s->work.sampling, item->heat,
                                                s->work.words, &s->work.finite);
}

/* Samples one code of each item from the states in `normal`, one row per branch. Items that sample from the same ids
 * share the read of their weights. */
static void draw_codes(audiolm_session *s, const int32_t *numbers, int32_t count, int32_t rows, int32_t q) {
    workspace *w = &s->work;
    const audiolm_model *m = &w->model;
    quantize_rows(w, rows, w->normal, (size_t)m->width, m->width);
    for (int32_t n = 0, row = 0; n < count;) {
        int32_t low = s->items[numbers[n]].lows[s->made[numbers[n]]], id = q * m->vocabulary + low;
        int32_t last = n, alike = 0;
        for (; last < count && s->items[numbers[last]].lows[s->made[numbers[last]]] == low; last++)
            alike += s->items[numbers[last]].branches;
        float *logits = find_logits(w, id, row, alike);
        row += alike;
        for (; n < last; n++) {
            draw_code(s, numbers[n], q, logits);
            logits += (size_t)s->items[numbers[n]].branches * w->logits_stride;
        }
    }
}

/* One step of items whose branches fit into a tile. */
static void step(audiolm_session *s, const int32_t *numbers, int32_t count) {
    const audiolm_model *m = &s->work.model;
    size_t width = (size_t)m->width;
    int32_t rows = 0;
    for (int32_t n = 0; n < count; n++)
        for (int32_t b = 0; b < s->items[numbers[n]].branches; b++, rows++) {
            s->row_slot[rows] = s->slot + s->first[numbers[n]] + b;
            memcpy(s->work.normal + (size_t)rows * width, s->row_slot[rows]->hidden, width * sizeof(float));
        }
    memset(s->before, 0, (size_t)rows * width * sizeof(float));
    draw_codes(s, numbers, count, rows, 0);
    for (int32_t q = 1; q < m->quantizers; q++) {
        for (int32_t n = 0, row = 0; n < count; n++) {
            const audiolm_item *item = s->items + numbers[n];
            int32_t code = item->made[(size_t)s->made[numbers[n]] * (size_t)m->quantizers + (size_t)q - 1];
            for (int32_t b = 0; b < item->branches; b++, row++)
                add_row(s->before + (size_t)row * width,
                        m->ids + (size_t)((q - 1) * m->vocabulary + code) * width, m->width);
        }
        climb(s, m->levels + q - 1, rows);
        draw_codes(s, numbers, count, rows, q);
    }
    rows = 0;
    for (int32_t n = 0; n < count; n++) {
        const audiolm_item *item = s->items + numbers[n];
        int32_t made = s->made[numbers[n]]++;
        const int32_t *ids = item->made + (size_t)made * (size_t)m->quantizers;
        if (item->stop >= 0 && ids[0] == item->stop) s->made[numbers[n]] = item->steps;
        if (s->made[numbers[n]] == item->steps) continue;
        for (int32_t b = 0; b < item->branches; b++, rows++) {
            slot *to = s->slot + s->first[numbers[n]] + b;
            enter(s, rows, to, to->branch->known + made, ids);
        }
    }
    if (rows) forward(s, rows, rows);
}

static size_t cache_bytes(const audiolm_session *s, int32_t item) {
    const audiolm_model *m = &s->work.model;
    size_t positions = 0;
    for (int32_t b = 0; b < s->items[item].branches; b++) positions += s->slot[s->first[item] + b].length;
    return positions * (size_t)m->layers * (size_t)m->kv_heads * (size_t)m->head_width * 2 * sizeof(float);
}

/* The end of the items, from one on, that are decoded together: at most a tile, and no more than fit with their KV
 * caches and the weights into a near cache. If the weights alone do not fit, all share each read of them. */
static int32_t group_end(const audiolm_session *s, int32_t item) {
    int32_t rows = 0;
    for (size_t bytes = s->weights; item < s->count; item++) {
        int32_t more = s->items[item].branches;
        bytes += cache_bytes(s, item);
        if (rows + more > TILE || (rows >= FEW && s->weights <= NEAR && bytes > NEAR)) break;
        rows += more;
    }
    return item;
}

/* One step of the items [first, last); returns the number of new ids. */
static int64_t advance_items(audiolm_session *s, int32_t first, int32_t last) {
    int32_t numbers[TILE], count = 0;
    for (; first < last; first++)
        if (s->made[first] < s->items[first].steps) numbers[count++] = first;
    if (count) step(s, numbers, count);
    return (int64_t)count * s->work.model.quantizers;
}

int64_t audiolm_advance(audiolm_session *s, int32_t steps) {
    if (!s || steps < 0 || s->prefilled < s->slots) return AUDIOLM_BAD_SIZE;
    for (int32_t n = 0; n < s->count; n++)
        if (!good_heat(s->items + n)) return AUDIOLM_BAD_SIZE;
    fenv_t before;
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    int64_t made = 0;
    for (int32_t first = 0, last; first < s->count; first = last) {
        last = group_end(s, first);
        for (int32_t n = 0; n < steps; n++) made += advance_items(s, first, last);
    }
    fesetenv(&before);
    return s->work.finite ? made : AUDIOLM_NOT_FINITE;
}

/* --------------------------------------------------------------------------------------------------- prefill */

int audiolm_prefill(audiolm_session *s, int32_t number) {
    if (!s || number < 0 || number >= s->slots || number != s->prefilled) return AUDIOLM_BAD_SIZE;
    slot *to = s->slot + number;
    int32_t known = to->branch->known;
    fenv_t before;
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    for (int32_t done = to->branch->shared; done < known; done += TILE) {
        int32_t rows = known - done < TILE ? known - done : TILE;
        for (int32_t r = 0; r < rows; r++)
            enter(s, r, to, done + r, to->branch->ids + (size_t)(done + r) * (size_t)s->work.model.quantizers);
        forward(s, rows, done + rows == known);
    }
    fesetenv(&before);
    s->prefilled++;
    return s->work.finite ? 0 : AUDIOLM_NOT_FINITE;
}
