#include "workspace.h"

#include <stdlib.h>

#define MAX(a, b) ((a) > (b) ? (a) : (b))

static float *floats(size_t count, int *missing) {
    float *found = calloc(count, sizeof(float));
    *missing |= !found;
    return found;
}

static int32_t most_inputs(const audiolm_model *m) {
    int32_t states = m->levels ? 2 * m->width : m->width;
    return MAX(MAX(states, m->heads * m->head_width), m->feedforward);
}

int make_workspace(workspace *w, const audiolm_model *model, const audiolm_sampling *sampling, size_t rows,
                   size_t longest) {
    size_t width = (size_t)model->width, size = (size_t)sampling->size, half = (size_t)model->head_width / 2;
    int missing = 0;
    *w = (workspace){.model = *model, .sampling = *sampling, .finite = 1};
    w->inner = (size_t)most_inputs(model) + UNROLLED;
    w->qkv_stride = (size_t)model->blocks[0].qkv.outputs;
    w->logits_stride = (size + 2 * OUTPUTS) / OUTPUTS * OUTPUTS;
    w->scores_stride = longest;
    w->q = calloc(TILE * w->inner, sizeof *w->q);
    w->words = calloc(2 * (size + LANES), sizeof *w->words);
    missing |= !w->q || !w->words;
    w->up = floats(TILE * (size_t)model->blocks[0].up.outputs, &missing);
    w->logits = floats(TILE * w->logits_stride + OUTPUTS, &missing);
    w->scores = floats(SHARED * w->scores_stride, &missing);
    w->x = floats(rows * width, &missing);
    w->normal = floats(TILE * width, &missing);
    w->qkv = floats(rows * w->qkv_stride, &missing);
    w->attended = floats(rows * (size_t)(model->heads * model->head_width), &missing);
    w->sine = floats(rows * half, &missing);
    w->cosine = floats(rows * half, &missing);
    return !missing;
}

void free_workspace(workspace *w) {
    float *all[] = {w->up, w->logits, w->scores, w->x, w->normal, w->qkv, w->attended, w->sine, w->cosine};
    for (size_t n = 0; n < sizeof all / sizeof *all; n++) free(all[n]);
    free(w->q);
    free(w->words);
}
