/* Drawing an id from logits with a given number: temperature, top-k, top-p. */
#ifndef AUDIOLM_SAMPLING_H
#define AUDIOLM_SAMPLING_H

#include "kernel.h"
#include "vectors.h"

static const double COLDEST = 1e-6; /* a lower temperature counts as 0 */

static inline int all_finite(const float *x, int32_t size) {
    int finite = 1;
    for (int32_t n = 0; n < size; n++) {
        uint32_t word;
        memcpy(&word, x + n, sizeof word);
        finite &= (word & 0x7f800000u) != 0x7f800000u;
    }
    return finite;
}

/* Sorts the bits of floats that are not negative, byte by byte: `words` in ascending order; `spare` is as large. */
static inline void sort(uint32_t *words, uint32_t *spare, int32_t size) {
    for (int shift = 0; shift < 32; shift += 8) {
        int32_t places[257] = {0};
        for (int32_t n = 0; n < size; n++) places[(words[n] >> shift & 255) + 1]++;
        for (int n = 0; n < 256; n++) places[n + 1] += places[n];
        for (int32_t n = 0; n < size; n++) spare[places[words[n] >> shift & 255]++] = words[n];
        uint32_t *swapped = words;
        words = spare;
        spare = swapped;
    }
}

/* The least weight that is kept: of the `top_k` largest the least that reach a share of `top_p`. */
static inline float least_kept(const float *weights, int32_t size, int32_t top_k, double top_p, uint32_t *words,
                               uint32_t *spare) {
    memcpy(words, weights, (size_t)size * sizeof *words);
    sort(words, spare, size);
    int32_t first = top_k > 0 && top_k < size ? size - top_k : 0;
    double total = 0, below = 0;
    float weight = 0;
    for (int32_t n = first; n < size; n++) {
        memcpy(&weight, words + n, sizeof weight);
        total += (double)weight;
    }
    for (int32_t n = first; n < size; n++) {
        memcpy(&weight, words + n, sizeof weight);
        below += (double)weight;
        if (below > total * (1.0 - top_p)) break;
    }
    return weight;
}

static inline int32_t likeliest(const float *logits, int32_t size) {
    int32_t best = 0;
    for (int32_t n = 1; n < size; n++)
        if (logits[n] > logits[best]) best = n;
    return best;
}

/* Draws from finite logits, which are overwritten; `spare` has room for twice as many, and logits for a multiple of
 * eight. Ids that are as likely as the last one kept are kept as well. */
static inline int32_t draw(float *logits, float uniform, const audiolm_sampling *s, uint32_t *spare) {
    int32_t size = s->size, best = likeliest(logits, size);
    if (s->temperature < COLDEST) return best;
    float top = logits[best], temperature = (float)s->temperature;
    for (int32_t n = 0; n < size; n += LANES) store(logits + n, exponential((load(logits + n) - top) / temperature));
    float least = 0;
    if ((s->top_k > 0 && s->top_k < size) || s->top_p < 1)
        least = least_kept(logits, size, s->top_k, s->top_p, spare, spare + size);
    double total = 0, reached = 0;
    for (int32_t n = 0; n < size; n++) total += logits[n] >= least ? (double)logits[n] : 0.0;
    for (int32_t n = 0; n < size; n++) {
        reached += logits[n] >= least ? (double)logits[n] : 0.0;
        if (reached >= total * (double)uniform) return n;
    }
    return best; /* not for a number below 1 */
}

#endif
