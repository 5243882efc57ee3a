/* One quantizer's codes for all frames of a window in one pass, without causal masking. */
#include <fenv.h>
#include <stdlib.h>

#include "checks.h"
#include "sampling.h"
#include "workspace.h"

/* A frame's input: the embeddings of its known codes, and of the quantizer to predict. */
static void enter_frame(workspace *w, const audiolm_window *window, int32_t frame, int32_t quantizer) {
    const audiolm_model *m = &w->model;
    size_t width = (size_t)m->width;
    float *x = w->x + (size_t)frame * width;
    memset(x, 0, width * sizeof *x);
    for (int32_t q = 0; q < m->quantizers; q++) {
        int32_t code = window->codes[(size_t)q * (size_t)window->frames + (size_t)frame];
        int32_t id = code < 0 ? m->quantizers * m->vocabulary : q * m->vocabulary + code;
        add_row(x, m->ids + (size_t)id * width, m->width);
    }
    int wanted = window->codes[(size_t)quantizer * (size_t)window->frames + (size_t)frame] < 0;
    add_row(x, m->asked + (size_t)(wanted ? quantizer : m->quantizers) * width, m->width);
}

/* Attention of a tile of frames to all frames. Frames read a head's keys and values together. */
static void attend_frames(workspace *w, int32_t first, int32_t rows, int32_t frames, const float *keys,
                          const float *values, size_t room) {
    const audiolm_model *m = &w->model;
    size_t width = (size_t)m->head_width, joined = (size_t)m->heads * width;
    for (int32_t h = 0; h < m->heads; h++) {
        size_t start = (size_t)(h / (m->heads / m->kv_heads)) * room * width, head = (size_t)h * width;
        stretch all = {keys + start, values + start, room, frames};
        attend(rows, w->qkv + (size_t)first * w->qkv_stride + head, w->qkv_stride, &all, 1, m->head_width, w->scores,
               w->scores_stride, w->attended + (size_t)first * joined + head, joined);
    }
}

/* Runs all frames through all blocks; in the last one only the `wanted` frames at the end. All layers use the same
 * memory for keys and values. */
static void forward(workspace *w, int32_t frames, int32_t wanted, float *keys, float *values, size_t room) {
    const audiolm_model *m = &w->model;
    for (int32_t r = 0; r < frames; r++) find_turns(w, r, r);
    for (int32_t layer = 0; layer < m->layers; layer++) {
        const audiolm_block *b = m->blocks + layer;
        for (int32_t r = 0; r < frames; r += TILE) project(w, b, r, frames - r < TILE ? frames - r : TILE);
        for (int32_t r = 0; r < frames; r++) place_row(w, b, r, keys, values, r, room);
        for (int32_t r = layer + 1 < m->layers ? 0 : frames - wanted; r < frames; r += TILE) {
            int32_t rows = frames - r < TILE ? frames - r : TILE;
            attend_frames(w, r, rows, frames, keys, values, room);
            finish(w, b, r, rows);
        }
    }
}

/* Samples a quantizer's codes from the hidden states of the frames after the known ones. */
static void draw_frames(workspace *w, const audiolm_window *window, int32_t quantizer) {
    const audiolm_model *m = &w->model;
    size_t width = (size_t)m->width;
    int32_t *made = window->codes + (size_t)quantizer * (size_t)window->frames;
    for (int32_t first = window->known; first < window->frames; first += TILE) {
        int32_t rows = window->frames - first < TILE ? window->frames - first : TILE;
        normalize_rows(&m->norm, rows, w->x + (size_t)first * width, w->normal, m->width);
        quantize_rows(w, rows, w->normal, width, m->width);
        float *logits = find_logits(w, quantizer * m->vocabulary, 0, rows);
        const float *uniform = window->uniform + first - window->known;
        for (int32_t r = 0; r < rows; r++, logits += w->logits_stride)
            made[first + r] = sample(logits, uniform[r], &w->sampling, 1, w->words, &w->finite);
    }
}

int audiolm_fill(const audiolm_model *model, const audiolm_window *window, const audiolm_sampling *sampling,
                 int32_t quantizer) {
    if (!model || !window || !sampling || !good_window(model, window, sampling, quantizer)) return AUDIOLM_BAD_SIZE;
    int32_t frames = window->frames;
    size_t room = ((size_t)frames + LANES - 1) / LANES * LANES;
    size_t cache = room * (size_t)model->kv_heads * (size_t)model->head_width;
    workspace w;
    int made = make_workspace(&w, model, sampling, room, room);
    float *keys = calloc(cache, sizeof *keys), *values = calloc(cache, sizeof *values);
    if (made && keys && values) {
        fenv_t before;
        fegetenv(&before);
        fesetenv(FE_DFL_ENV);
        for (int32_t r = 0; r < frames; r++) enter_frame(&w, window, r, quantizer);
        forward(&w, frames, frames - window->known, keys, values, room);
        draw_frames(&w, window, quantizer);
        fesetenv(&before);
    }
    int result = !made || !keys || !values ? AUDIOLM_NO_MEMORY : w.finite ? 0 : AUDIOLM_NOT_FINITE;
    free(keys);
    free(values);
    free_workspace(&w);
    return result;
}
