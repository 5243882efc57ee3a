/* Sampling an id from logits with a given random number: temperature, top-k, top-p. Weights are summed as integers, so
 * sums are exact in any order. */
#ifndef AUDIOLM_SAMPLING_H
#define AUDIOLM_SAMPLING_H

#include "kernel.h"
#include "vectors.h"

static const double COLDEST = 1e-6;        /* lower temperatures count as 0 */
static const uint32_t LIKELIEST = 1u << 30; /* the likeliest id's integer weight */

enum { STRIDE = 64 }; /* ids skipped at a time */

static inline int all_finite(const float *x, int32_t size) {
    int finite = 1;
    for (int32_t n = 0; n < size; n++) {
        uint32_t word;
        memcpy(&word, x + n, sizeof word);
        finite &= (word & 0x7f800000u) != 0x7f800000u;
    }
    return finite;
}

static inline float largest(const float *logits, int32_t size) {
    float most = logits[0];
    int32_t n = 0;
    if (size >= LANES) {
        f8 found = load(logits);
        for (n = LANES; n + LANES <= size; n += LANES) found = larger(load(logits + n), found);
        most = maximum(found);
    }
    for (; n < size; n++) most = logits[n] > most ? logits[n] : most;
    return most;
}

/* The sum of the words not below `least`; words are below 2^31, their number a multiple of eight. */
static inline int64_t sum_from(const uint32_t *words, int32_t size, uint32_t least) {
    typedef uint64_t d4 __attribute__((vector_size(32)));
    i8 below = (i8){0} + ((int32_t)least - 1);
    d4 total = {0};
    for (int32_t n = 0; n < size; n += LANES) {
        i8 some;
        memcpy(&some, words + n, sizeof some);
        d4 pairs = (d4)(some & (some > below));
        total += (pairs & 0xffffffff) + (pairs >> 32);
    }
    return (int64_t)(total[0] + total[1] + total[2] + total[3]);
}

static inline int32_t count_below(const uint32_t *words, int32_t size, uint32_t limit) {
    int32_t count = 0;
    for (int32_t n = 0; n < size; n++) count += words[n] < limit;
    return count;
}

/* The least weight kept: among the `top_k` largest (or all), the fewest that reach the share `top_p`. `spare` is as
 * large as the words, which are padded with zeros to whole lanes. Found bit by bit, from the sum of those below. */
static inline uint32_t least_kept(const uint32_t *words, int32_t size, int32_t top_k, double top_p, uint32_t *spare) {
    int32_t padded = (size + LANES - 1) / LANES * LANES, inside = 0;
    uint32_t first = 0, least = 0;
    int64_t total = sum_from(words, padded, 0);
    if (top_k > 0 && top_k < size) {
        int32_t outside = size - top_k;
        for (uint32_t bit = LIKELIEST; bit; bit >>= 1)
            if (count_below(words, size, first | bit) <= outside) first |= bit;
        int32_t equal = outside - count_below(words, size, first); /* tied with the least one kept, but not kept */
        total = sum_from(words, padded, first) - (int64_t)equal * first;
    }
    double limit = (double)total * (1.0 - top_p);
    limit = limit > 0 ? limit < (double)total ? limit : (double)total : 0;
    /* skip weights so small that together they cannot reach the limit */
    uint32_t small = (uint32_t)(limit / (2.0 * size));
    if (small < first) small = first - 1;
    for (int32_t n = 0; n < size; n++) {
        spare[inside] = words[n];
        inside += words[n] > small;
    }
    while (inside % LANES) spare[inside++] = 0;
    for (uint32_t bit = LIKELIEST; bit; bit >>= 1)
        if (!((double)(total - sum_from(spare, inside, least | bit)) > limit)) least |= bit;
    least = least < LIKELIEST ? least : LIKELIEST;
    return least > first ? least : first;
}

/* Samples from logits, at `heat` times the temperature; up to eight floats behind them are overwritten. `words` has
 * room for twice as many, rounded up to lanes. Ids as likely as the last one kept are kept as well. If logits are not
 * finite, it returns 0 and sets `finite` to 0. */
static inline int32_t sample(float *logits, float uniform, const audiolm_sampling *s, float heat, uint32_t *words,
                             int *finite) {
    int32_t size = s->size, padded = (size + LANES - 1) / LANES * LANES, n = 0;
    if (!all_finite(logits, size)) return *finite = 0;
    float most = largest(logits, size), temperature = (float)(s->temperature * (double)heat);
    if (s->temperature < COLDEST) {
        while (logits[n] != most) n++;
        return n;
    }
    for (n = size; n < padded; n++) logits[n] = most;
    for (n = 0; n < padded; n += LANES) {
        f8 weight = exponential((load(logits + n) - most) / temperature) * (float)LIKELIEST;
        i8 whole = __builtin_convertvector(weight, i8);
        memcpy(words + n, &whole, sizeof whole);
    }
    for (n = size; n < padded; n++) words[n] = 0;
    int some = (s->top_k > 0 && s->top_k < size) || s->top_p < 1;
    uint32_t least = some ? least_kept(words, size, s->top_k, s->top_p, words + padded) : 0;
    double wanted = (double)sum_from(words, padded, least) * (double)uniform;
    int64_t reached = 0, next;
    for (n = 0; n + STRIDE < padded; n += STRIDE, reached = next) {
        next = reached + sum_from(words + n, STRIDE, least);
        if ((double)next >= wanted) break;
    }
    for (; n < size; n++) {
        reached += words[n] >= least ? words[n] : 0;
        if ((double)reached >= wanted) return n;
    }
    return size - 1; /* not reached for numbers below 1 */
}

#endif
