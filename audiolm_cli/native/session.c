#include "session.h"

#include <stdlib.h>

#include "checks.h"

static float *floats(size_t count, int *missing) {
    float *found = calloc(count, sizeof(float));
    *missing |= !found;
    return found;
}

static void make_slot(const audiolm_model *m, slot *to, const audiolm_branch *branch, int32_t steps, int *missing) {
    size_t length = ((size_t)(branch->known - branch->shared) + (size_t)steps + LANES - 1) / LANES * LANES;
    size_t cache = length * (size_t)m->layers * (size_t)m->kv_heads * (size_t)m->head_width;
    *to = (slot){.branch = branch, .length = length};
    to->keys = floats(cache, missing);
    to->values = floats(cache, missing);
    to->hidden = floats((size_t)m->width, missing);
}

static size_t matrix_bytes(const audiolm_matrix *m) { return (size_t)m->outputs * (size_t)m->inputs; }

static size_t weight_bytes(const audiolm_model *m) {
    size_t bytes = matrix_bytes(&m->head);
    for (const audiolm_block *b = m->blocks; b < m->blocks + m->layers; b++)
        bytes += matrix_bytes(&b->qkv) + matrix_bytes(&b->output) + matrix_bytes(&b->up) + matrix_bytes(&b->down);
    for (int32_t n = 0; n + 1 < m->quantizers; n++)
        bytes += matrix_bytes(&m->levels[n].up) + matrix_bytes(&m->levels[n].down);
    return bytes;
}

audiolm_session *audiolm_open(const audiolm_model *model, int32_t count, const audiolm_item *items,
                              const audiolm_branch *branches, const audiolm_sampling *sampling, int *error) {
    if (!error) return NULL;
    *error = AUDIOLM_BAD_SIZE;
    if (!model || !sampling || !good_model(model)) return NULL;
    int32_t slots = checked_items(model, count, items, branches, sampling);
    if (slots < 0) return NULL;
    *error = AUDIOLM_NO_MEMORY;
    audiolm_session *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->items = items;
    s->count = count;
    s->weights = weight_bytes(model);
    int missing = 0;
    size_t longest = 0;
    s->first = calloc((size_t)count, sizeof *s->first);
    s->made = calloc((size_t)count, sizeof *s->made);
    s->slot = calloc((size_t)slots, sizeof *s->slot);
    s->before = floats(TILE * (size_t)model->width, &missing);
    s->both = floats(TILE * 2 * (size_t)model->width, &missing);
    missing |= !s->first || !s->made || !s->slot;
    for (int32_t n = 0; n < count && !missing; n++) {
        s->first[n] = s->slots;
        for (int32_t b = 0; b < items[n].branches; b++, s->slots++) {
            slot *to = s->slot + s->slots;
            make_slot(model, to, branches + s->slots, items[n].steps, &missing);
            if (to->branch->shared) to->like = s->slot + to->branch->like;
            size_t length = (size_t)to->branch->shared + to->length;
            if (length > longest) longest = length;
        }
    }
    if (missing || !make_workspace(&s->work, model, sampling, TILE, longest)) {
        audiolm_close(s);
        return NULL;
    }
    *error = 0;
    return s;
}

const float *audiolm_state(const audiolm_session *s, int32_t branch) {
    return s && branch >= 0 && branch < s->prefilled ? s->slot[branch].hidden : NULL;
}

void audiolm_close(audiolm_session *s) {
    if (!s) return;
    for (int32_t n = 0; n < s->slots; n++) {
        free(s->slot[n].keys);
        free(s->slot[n].values);
        free(s->slot[n].hidden);
    }
    free_workspace(&s->work);
    free(s->before);
    free(s->both);
    free(s->first);
    free(s->made);
    free(s->slot);
    free(s);
}
