/* Drawing an id from logits with a given number: temperature, top-k, top-p. Weights are added up as integers, so that
 * sums are exact in any order. */
#ifndef AUDIOLM_SAMPLING_H
#define AUDIOLM_SAMPLING_H

#include "kernel.h"
#include "vectors.h"

static const double COLDEST = 1e-6;        /* a lower temperature counts as 0 */
static const float WHOLE = 1073741824.0f; /* 2^30: the likeliest id's weight as an integer */

enum { BUCKETS = 256 }; /* of weights, eight an octave; 241 of them from 2^-30 to 1 */

static inline int all_finite(const float *x, int32_t size) {
    int finite = 1;
    for (int32_t n = 0; n < size; n++) {
        uint32_t word;
        memcpy(&word, x + n, sizeof word);
        finite &= (word & 0x7f800000u) != 0x7f800000u;
    }
    return finite;
}

static inline uint32_t whole(float weight) { return (uint32_t)(int32_t)(weight * WHOLE); }

static inline int32_t bucket_of(float weight) {
    int32_t word;
    memcpy(&word, &weight, sizeof word);
    int32_t bucket = (word >> 20) - ((127 - 30) << 3);
    return bucket < 0 ? 0 : bucket;
}

/* Sorts words byte by byte, in ascending order; `spare` is as large. */
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

/* The first of words in ascending order with which `below`, what is below them, exceeds a limit; else the last. */
static inline uint32_t first_above(const uint32_t *words, int32_t size, int64_t below, double limit) {
    for (int32_t n = 0; n < size; n++) {
        below += words[n];
        if ((double)below > limit) return words[n];
    }
    return words[size - 1];
}

/* The least weight that is kept: of the `top_k` largest the least that reach a share of `top_p`. */
static inline uint32_t least_of_largest(const float *weights, int32_t size, int32_t top_k, double top_p,
                                        uint32_t *words, uint32_t *spare) {
    int64_t total = 0;
    for (int32_t n = 0; n < size; n++) words[n] = whole(weights[n]);
    sort(words, spare, size);
    for (int32_t n = size - top_k; n < size; n++) total += words[n];
    return first_above(words + size - top_k, top_k, 0, (double)total * (1.0 - top_p));
}

/* The same of all weights: only those of the bucket in which it lies have to be sorted. */
static inline uint32_t least_of_all(const float *weights, int32_t size, double top_p, uint32_t *words,
                                    uint32_t *spare) {
    int64_t sums[BUCKETS] = {0}, total = 0, below = 0;
    for (int32_t n = 0; n < size; n++) sums[bucket_of(weights[n])] += whole(weights[n]);
    for (int n = 0; n < BUCKETS; n++) total += sums[n];
    double limit = (double)total * (1.0 - top_p);
    int32_t bucket = 0, last = bucket_of(1.0f), inside = 0;
    for (; bucket < last && !((double)(below + sums[bucket]) > limit); bucket++) below += sums[bucket];
    for (int32_t n = 0; n < size; n++) {
        words[inside] = whole(weights[n]);
        inside += bucket_of(weights[n]) == bucket;
    }
    sort(words, spare, inside);
    return first_above(words, inside, below, limit);
}

static inline int32_t likeliest(const float *logits, int32_t size) {
    float most = logits[0];
    int32_t n = 0;
    if (size >= LANES) {
        f8 found = load(logits);
        for (n = LANES; n + LANES <= size; n += LANES) found = larger(load(logits + n), found);
        most = maximum(found);
    }
    for (; n < size; n++) most = logits[n] > most ? logits[n] : most;
    for (n = 0; logits[n] != most; n++);
    return n;
}

/* Draws from logits, which are overwritten; `spare` has room for twice as many, and logits for a multiple of eight. Ids
 * that are as likely as the last one kept are kept as well. Of logits that are not finite it is 0, and so is `finite`. */
static inline int32_t draw(float *logits, float uniform, const audiolm_sampling *s, uint32_t *spare, int *finite) {
    int32_t size = s->size;
    if (!all_finite(logits, size)) return *finite = 0;
    int32_t best = likeliest(logits, size);
    if (s->temperature < COLDEST) return best;
    float top = logits[best], temperature = (float)s->temperature;
    for (int32_t n = 0; n < size; n += LANES) store(logits + n, exponential((load(logits + n) - top) / temperature));
    uint32_t least = 0;
    if (s->top_k > 0 && s->top_k < size)
        least = least_of_largest(logits, size, s->top_k, s->top_p, spare, spare + size);
    else if (s->top_p < 1)
        least = least_of_all(logits, size, s->top_p, spare, spare + size);
    int64_t total = 0, reached = 0;
    for (int32_t n = 0; n < size; n++) {
        uint32_t weight = whole(logits[n]);
        spare[n] = weight >= least ? weight : 0;
        total += spare[n];
    }
    double wanted = (double)total * (double)uniform;
    for (int32_t n = 0; n < size; n++) {
        reached += spare[n];
        if ((double)reached >= wanted) return n;
    }
    return best; /* not for a number below 1 */
}

#endif
