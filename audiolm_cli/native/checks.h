/* Checks sizes, indices and pointers, so that nothing outside the caller's memory is read or written. */
#ifndef AUDIOLM_CHECKS_H
#define AUDIOLM_CHECKS_H

#include "kernel.h"
#include "products.h"

enum {
    MOST_WIDTH = 1 << 16,
    MOST_LENGTH = 1 << 24,
    MOST_SLOTS = 1 << 16,
    MOST_BRANCHES = 16,
    MOST_IDS = 1 << 24,
};

static inline int good_matrix(const audiolm_matrix *m, int32_t outputs, int32_t inputs) {
    return m->values && m->scales && m->sums && m->outputs % OUTPUTS == 0 && m->inputs % UNROLLED == 0 &&
           m->outputs >= outputs && m->outputs < outputs + OUTPUTS && m->inputs >= inputs &&
           m->inputs < inputs + UNROLLED && m->inputs <= MOST_INPUTS;
}

static inline int good_norm(const audiolm_norm *n) { return n->weight && n->epsilon >= 0 && n->epsilon <= 1; }

static inline int good_block(const audiolm_model *m, const audiolm_block *b) {
    int32_t joined = m->heads * m->head_width, up = m->gated ? 2 * m->feedforward : m->feedforward;
    return good_norm(&b->attention_norm) && good_norm(&b->feedforward_norm) &&
           (!b->query_norm.weight || good_norm(&b->query_norm)) && (!b->key_norm.weight || good_norm(&b->key_norm)) &&
           good_matrix(&b->qkv, joined + 2 * m->kv_heads * m->head_width, m->width) &&
           good_matrix(&b->output, m->width, joined) && good_matrix(&b->up, up, m->width) &&
           good_matrix(&b->down, m->width, m->feedforward);
}

/* What all kinds of models need. */
static inline int good_stack(const audiolm_model *m) {
    if (m->width < OUTPUTS || m->width > MOST_WIDTH || m->width % OUTPUTS || m->feedforward < OUTPUTS ||
        m->feedforward > MOST_WIDTH || m->feedforward % OUTPUTS || m->heads < 1 || m->heads > MOST_WIDTH ||
        m->head_width < LANES || m->head_width % LANES || m->head_width > MOST_WIDTH / m->heads ||
        m->kv_heads < 1 || m->heads % m->kv_heads || m->layers < 1 ||
        m->layers > 1024 || m->quantizers < 1 || m->quantizers > 1024 || m->vocabulary < 1 ||
        m->vocabulary > MOST_IDS / m->quantizers || !m->turns || !m->ids || !m->blocks || !good_norm(&m->norm) ||
        !good_matrix(&m->head, m->quantizers * m->vocabulary, m->width))
        return 0;
    for (int32_t n = 0; n < m->head_width / 2; n++)
        if (!(m->turns[n] >= 0 && m->turns[n] <= 1)) return 0;
    for (int32_t n = 0; n < m->layers; n++)
        if (!good_block(m, m->blocks + n)) return 0;
    return 1;
}

/* A model that decodes step by step. */
static inline int good_model(const audiolm_model *m) {
    if (!good_stack(m) || m->asked) return 0;
    for (int32_t n = 0; n + 1 < m->quantizers; n++) {
        const audiolm_level *l = m->levels + n;
        if (!m->levels || !good_norm(&l->codes_norm) || !good_norm(&l->norm) ||
            !good_matrix(&l->up, m->width, 2 * m->width) || !good_matrix(&l->down, m->width, m->width))
            return 0;
    }
    return 1;
}

static inline int good_branch(const audiolm_model *m, const audiolm_branch *b, int32_t steps, int32_t number) {
    if (b->known < 1 || b->known > MOST_LENGTH || b->shared < 0 || b->shared >= b->known || b->shared % LANES ||
        (b->shared && (b->like < 0 || b->like >= number)) || !b->ids || !b->positions)
        return 0;
    for (int32_t n = 0; n < b->known; n++)
        for (int32_t q = 0; q < m->quantizers; q++) {
            int32_t id = b->ids[(size_t)n * (size_t)m->quantizers + (size_t)q];
            if (id < 0 || id >= m->vocabulary) return 0;
        }
    for (int32_t n = 0; n < b->known + steps; n++)
        if (b->positions[n] < 0 || b->positions[n] > MOST_LENGTH) return 0;
    return 1;
}

/* One quantizer of a window, for a model that fills windows, and its sampling. */
static inline int good_window(const audiolm_model *m, const audiolm_window *w, const audiolm_sampling *s,
                              int32_t quantizer) {
    if (!good_stack(m) || m->levels || !m->asked || w->frames < 1 || w->frames > MOST_LENGTH || w->known < 0 ||
        w->known >= w->frames || !w->codes || !w->uniform || quantizer < 0 || quantizer >= m->quantizers ||
        s->size != m->vocabulary || s->guides)
        return 0;
    for (size_t n = 0; n < (size_t)m->quantizers * (size_t)w->frames; n++)
        if (w->codes[n] < -1 || w->codes[n] >= m->vocabulary) return 0;
    return 1;
}

static inline int good_heat(const audiolm_item *item) { return item->heat >= 1 && item->heat <= AUDIOLM_HOTTEST; }

/* The total number of the items' branches, or an error. */
static inline int32_t checked_items(const audiolm_model *m, int32_t count, const audiolm_item *items,
                             const audiolm_branch *branches, const audiolm_sampling *s) {
    int32_t number = 0;
    if (count < 1 || !items || !branches || s->size < 1 || s->size > m->vocabulary || s->guides < 0 ||
        s->guides >= MOST_BRANCHES || (s->guides && !s->shares))
        return AUDIOLM_BAD_SIZE;
    for (int32_t n = 0; n < count; n++) {
        const audiolm_item *item = items + n;
        if (item->steps < 1 || item->steps > MOST_LENGTH || !good_heat(item) || !item->lows || !item->uniform ||
            !item->made ||
            (item->branches != 1 && item->branches != 1 + s->guides) || number + item->branches > MOST_SLOTS)
            return AUDIOLM_BAD_SIZE;
        for (int32_t t = 0; t < item->steps; t++)
            if (item->lows[t] < 0 || item->lows[t] > m->vocabulary - s->size) return AUDIOLM_BAD_SIZE;
        for (int32_t b = 0; b < item->branches; b++, number++) {
            const audiolm_branch *branch = branches + number;
            if (!good_branch(m, branch, item->steps, number)) return AUDIOLM_BAD_SIZE;
            const audiolm_branch *like = branch->shared ? branches + branch->like : NULL;
            if (like && (like->shared || like->known < branch->shared)) return AUDIOLM_BAD_SIZE;
        }
    }
    return number;
}

#endif
