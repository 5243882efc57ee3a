/* Attention of queries over a KV cache. Keys are stored as [length / 8][head width][8], so that one pass computes eight
 * positions' scores without sums across lanes; values as [head width / 8][length][8], so that a pass reads memory in
 * order. Queries that share them (heads of one position, or positions of one head) are processed in turn while they are
 * in a near cache of the core. */
#ifndef AUDIOLM_ATTENTION_H
#define AUDIOLM_ATTENTION_H

#include "vectors.h"

#ifndef INLINE
#define INLINE static inline __attribute__((always_inline))
#endif
#define OUTSIDE static __attribute__((noinline, unused)) /* inlined, it would run out of registers */

/* Consecutive positions in a cache with `room` for that many. */
typedef struct {
    const float *keys, *values;
    size_t room;
    int32_t length;
} stretch;

enum {
    TOGETHER = 4,         /* queries whose sums are in registers */
    SHARED = 16,          /* queries that share a read of keys and values */
    FURTHER = 64 * LANES, /* floats: how far ahead values are prefetched */
};

/* Rotates pairs (i, i + half) of a head by an angle each, and scales the result. */
static inline void rotate(float *x, const float *sine, const float *cosine, int32_t half, float scale) {
    for (int32_t n = 0; n < half; n++) {
        float a = x[n], b = x[half + n];
        x[n] = (a * cosine[n] - b * sine[n]) * scale;
        x[half + n] = (b * cosine[n] + a * sine[n]) * scale;
    }
}

static inline void keep_key(float *keys, const float *key, int32_t place, int32_t width) {
    float *to = keys + (size_t)(place / LANES) * LANES * (size_t)width + place % LANES;
    for (int32_t n = 0; n < width; n++) to[n * LANES] = key[n];
}

static inline void keep_value(float *values, const float *value, int32_t place, int32_t width, size_t room) {
    for (int32_t n = 0; n < width; n += LANES)
        store(values + (size_t)n * room + (size_t)place * LANES, load(value + n));
}

/* Prefetches what lies `floats` ahead, for a KV cache larger than the core's caches. The address is computed as an
 * integer, since nothing lies behind the last one. */
INLINE void ask_further(const float *from, size_t floats) {
    __builtin_prefetch((const void *)((uintptr_t)from + (uintptr_t)floats * sizeof *from));
}

/* Scores of `blocks` times eight positions for some queries, `q_stride` apart. */
INLINE void score(const int queries, const int blocks, const float *q, size_t q_stride, const float *keys,
                  int32_t width, float *scores, size_t stride) {
    f8 total[TOGETHER][2];
    for (int h = 0; h < queries; h++)
        for (int b = 0; b < blocks; b++) total[h][b] = every(0);
    for (int32_t n = 0; n < width; n++) {
        f8 key[2];
        for (int b = 0; b < blocks; b++) {
            const float *from = keys + ((size_t)b * (size_t)width + (size_t)n) * LANES;
            ask_further(from, (size_t)blocks * (size_t)width * LANES);
            key[b] = load(from);
        }
        for (int h = 0; h < queries; h++)
            for (int b = 0; b < blocks; b++) total[h][b] = total[h][b] + key[b] * q[h * q_stride + (size_t)n];
    }
    for (int h = 0; h < queries; h++)
        for (int b = 0; b < blocks; b++) store(scores + h * stride + b * LANES, total[h][b]);
}

/* Scores -> unnormalised probabilities, 0 past the length; returns the factor that normalises them. */
static inline float shares(float *scores, int32_t length) {
    int32_t padded = (length + LANES - 1) / LANES * LANES;
    for (int32_t n = length; n < padded; n++) scores[n] = -__builtin_inff();
    f8 most = load(scores), total = every(0);
    for (int32_t n = LANES; n < padded; n += LANES) most = larger(load(scores + n), most);
    float top = maximum(most);
    for (int32_t n = 0; n < padded; n += LANES) {
        f8 share = exponential(load(scores + n) - top);
        total = total + share;
        store(scores + n, share);
    }
    return 1.0f / sum(total);
}

/* The weighted sum of values in `vectors` times eight dimensions, from number `first` on, for some queries. */
INLINE void weigh(const int queries, const int vectors, int32_t first, const stretch *parts, int count,
                  const float *scores, size_t stride, const float *scale, float *out, size_t out_stride) {
    f8 total[TOGETHER][2];
    for (int h = 0; h < queries; h++)
        for (int v = 0; v < vectors; v++) total[h][v] = every(0);
    for (const stretch *part = parts; part < parts + count; scores += part->length, part++) {
        const float *values = part->values + (size_t)first * part->room;
        for (int32_t n = 0; n < part->length; n++)
            for (int v = 0; v < vectors; v++) {
                const float *from = values + ((size_t)v * part->room + (size_t)n) * LANES;
                ask_further(from, FURTHER);
                f8 value = load(from);
                for (int h = 0; h < queries; h++) total[h][v] = total[h][v] + value * scores[h * stride + (size_t)n];
            }
    }
    for (int h = 0; h < queries; h++)
        for (int v = 0; v < vectors; v++) store(out + h * out_stride + first + v * LANES, total[h][v] * scale[h]);
}

/* `score` for any number of queries. */
INLINE void score_all(int32_t queries, const int blocks, const float *q, size_t q_stride, const float *keys,
                      int32_t width, float *scores, size_t stride) {
    int32_t n = 0;
    for (; n + TOGETHER <= queries; n += TOGETHER)
        score(TOGETHER, blocks, q + (size_t)n * q_stride, q_stride, keys, width, scores + (size_t)n * stride, stride);
    for (; n < queries; n++)
        score(1, blocks, q + (size_t)n * q_stride, q_stride, keys, width, scores + (size_t)n * stride, stride);
}

/* `weigh` for any number of queries. */
INLINE void weigh_all(int32_t queries, const int vectors, int32_t first, const stretch *parts, int count,
                      const float *scores, size_t stride, const float *scale, float *out, size_t out_stride) {
    int32_t n = 0;
    for (; n + TOGETHER <= queries; n += TOGETHER)
        weigh(TOGETHER, vectors, first, parts, count, scores + (size_t)n * stride, stride, scale + n,
              out + (size_t)n * out_stride, out_stride);
    for (; n < queries; n++)
        weigh(1, vectors, first, parts, count, scores + (size_t)n * stride, stride, scale + n,
              out + (size_t)n * out_stride, out_stride);
}

/* Attention of queries that share keys and values, over `count` stretches of a cache, all but the last of whole lanes.
 * Queries and outputs are `q_stride` and `out_stride` apart. `scores` has room for SHARED times `stride`, which is at
 * least the total length, rounded up to lanes. */
OUTSIDE void attend(int32_t queries, const float *q, size_t q_stride, const stretch *parts, int count, int32_t width,
                    float *scores, size_t stride, float *out, size_t out_stride) {
    for (; queries > 0; queries -= SHARED, q += SHARED * q_stride, out += SHARED * out_stride) {
        int32_t some = queries < SHARED ? queries : SHARED, length = 0;
        for (const stretch *part = parts; part < parts + count; length += part->length, part++) {
            int32_t blocks = (part->length + LANES - 1) / LANES, b = 0;
            const float *keys = part->keys;
            float *to = scores + length;
            for (; b + 1 < blocks; b += 2, keys += 2 * LANES * (size_t)width, to += 2 * LANES)
                score_all(some, 2, q, q_stride, keys, width, to, stride);
            if (b < blocks) score_all(some, 1, q, q_stride, keys, width, to, stride);
        }
        float scale[SHARED];
        for (int32_t h = 0; h < some; h++) scale[h] = shares(scores + (size_t)h * stride, length);
        int32_t n = 0;
        for (; n + LANES < width; n += 2 * LANES)
            weigh_all(some, 2, n, parts, count, scores, stride, scale, out, out_stride);
        if (n < width) weigh_all(some, 1, n, parts, count, scores, stride, scale, out, out_stride);
    }
}

#endif
