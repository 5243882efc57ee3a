#include "session.h"

#include <stdlib.h>

#include "attention.h"
#include "checks.h"

#define MAX(a, b) ((a) > (b) ? (a) : (b))

static float *floats(size_t count, int *missing) {
    float *found = calloc(count, sizeof(float));
    *missing |= !found;
    return found;
}

static void make_slot(const audiolm_session *s, slot *to, const audiolm_branch *branch, int32_t steps, int *missing) {
    const audiolm_model *m = &s->model;
    size_t length = ((size_t)branch->known + (size_t)steps + LANES - 1) / LANES * LANES;
    size_t cache = length * (size_t)m->layers * (size_t)m->kv_heads * (size_t)s->head_width;
    *to = (slot){.branch = branch, .length = length};
    to->keys = floats(cache, missing);
    to->values = floats(cache, missing);
    to->hidden = floats((size_t)m->width, missing);
}

static int32_t most_inputs(const audiolm_model *m) {
    int32_t states = m->quantizers > 1 ? 2 * m->width : m->width;
    return MAX(states, m->feedforward);
}

static void make_tile(audiolm_session *s, int *missing) {
    const audiolm_model *m = &s->model;
    size_t width = (size_t)m->width, size = (size_t)s->sampling.size, longest = 0;
    for (int32_t n = 0; n < s->slots; n++) longest = MAX(longest, s->slot[n].length);
    s->inner = (size_t)most_inputs(m) + UNROLLED;
    s->qkv_stride = (size_t)m->blocks[0].qkv.outputs;
    s->logits_stride = (size + 2 * OUTPUTS) / OUTPUTS * OUTPUTS;
    s->scores_stride = longest;
    s->q = calloc(TILE * s->inner, sizeof *s->q);
    s->spare = calloc(2 * size, sizeof *s->spare);
    *missing |= !s->q || !s->spare;
    s->x = floats(TILE * width, missing);
    s->qkv = floats(TILE * s->qkv_stride, missing);
    s->attended = floats(TILE * width, missing);
    s->up = floats(TILE * (size_t)m->feedforward, missing);
    s->before = floats(TILE * width, missing);
    s->both = floats(TILE * 2 * width, missing);
    s->logits = floats(TILE * s->logits_stride + OUTPUTS, missing);
    s->scores = floats(SHARED * s->scores_stride, missing);
    s->sine = floats(TILE * (size_t)s->head_width, missing);
    s->cosine = floats(TILE * (size_t)s->head_width, missing);
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
    s->model = *model;
    s->sampling = *sampling;
    s->items = items;
    s->count = count;
    s->head_width = model->width / model->heads;
    s->finite = 1;
    s->first = calloc((size_t)count, sizeof *s->first);
    s->made = calloc((size_t)count, sizeof *s->made);
    s->slot = calloc((size_t)slots, sizeof *s->slot);
    int missing = !s->first || !s->made || !s->slot;
    for (int32_t n = 0; n < count && !missing; n++) {
        s->first[n] = s->slots;
        for (int32_t b = 0; b < items[n].branches; b++, s->slots++)
            make_slot(s, s->slot + s->slots, branches + s->slots, items[n].steps, &missing);
    }
    if (!missing) make_tile(s, &missing);
    if (missing) {
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
    float *tile[] = {s->x, s->qkv, s->attended, s->up, s->before, s->both, s->logits, s->scores, s->sine, s->cosine};
    for (size_t n = 0; n < sizeof tile / sizeof *tile; n++) free(tile[n]);
    free(s->q);
    free(s->spare);
    free(s->first);
    free(s->made);
    free(s->slot);
    free(s);
}
