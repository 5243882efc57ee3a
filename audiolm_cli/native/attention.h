/* Attention of one position over a cache. Keys stand as [length / 8][head width][8], so that eight positions' scores
 * come out of one pass without sums across lanes; values as [head width / 8][length][8], so that a pass reads memory in
 * its order. Both are read once for up to four query heads that share them. */
#ifndef AUDIOLM_ATTENTION_H
#define AUDIOLM_ATTENTION_H

#include "vectors.h"

#ifndef INLINE
#define INLINE static inline __attribute__((always_inline))
#endif

enum { SHARED = 4 }; /* query heads that are computed together */

/* Turns pairs (i, i + half) of a head by an angle each, and scales the result. */
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

/* Scores of `blocks` times eight positions for `heads` heads. */
INLINE void score(const int heads, const int blocks, const float *q, const float *keys, int32_t width, float *scores,
                  size_t stride) {
    f8 total[SHARED][2];
    for (int h = 0; h < heads; h++)
        for (int b = 0; b < blocks; b++) total[h][b] = every(0);
    for (int32_t n = 0; n < width; n++) {
        f8 key[2];
        for (int b = 0; b < blocks; b++) key[b] = load(keys + ((size_t)b * (size_t)width + (size_t)n) * LANES);
        for (int h = 0; h < heads; h++)
            for (int b = 0; b < blocks; b++) total[h][b] = total[h][b] + key[b] * q[h * width + n];
    }
    for (int h = 0; h < heads; h++)
        for (int b = 0; b < blocks; b++) store(scores + h * stride + b * LANES, total[h][b]);
}

/* Scores -> unscaled shares, 0 behind the length; returns what to scale by. */
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

/* `vectors` times eight dimensions of the weighted sum of values, for `heads` heads. */
INLINE void weigh(const int heads, const int vectors, const float *scores, size_t stride, const float *values,
                  size_t room, int32_t width, int32_t length, const float *scale, float *out) {
    f8 total[SHARED][2];
    for (int h = 0; h < heads; h++)
        for (int v = 0; v < vectors; v++) total[h][v] = every(0);
    for (int32_t n = 0; n < length; n++)
        for (int v = 0; v < vectors; v++) {
            f8 value = load(values + ((size_t)v * room + (size_t)n) * LANES);
            for (int h = 0; h < heads; h++) total[h][v] = total[h][v] + value * scores[h * stride + (size_t)n];
        }
    for (int h = 0; h < heads; h++)
        for (int v = 0; v < vectors; v++) store(out + h * width + v * LANES, total[h][v] * scale[h]);
}

INLINE void attend_heads(const int heads, const float *q, const float *keys, const float *values, size_t room,
                         int32_t width, int32_t length, float *scores, size_t stride, float *out) {
    float scale[SHARED];
    int32_t blocks = (length + LANES - 1) / LANES, b = 0;
    for (; b + 1 < blocks; b += 2)
        score(heads, 2, q, keys + (size_t)b * LANES * (size_t)width, width, scores + b * LANES, stride);
    if (b < blocks) score(heads, 1, q, keys + (size_t)b * LANES * (size_t)width, width, scores + b * LANES, stride);
    for (int h = 0; h < heads; h++) scale[h] = shares(scores + h * stride, length);
    int32_t n = 0;
    for (; n + LANES < width; n += 2 * LANES)
        weigh(heads, 2, scores, stride, values + (size_t)n * room, room, width, length, scale, out + n);
    if (n < width) weigh(heads, 1, scores, stride, values + (size_t)n * room, room, width, length, scale, out + n);
}

/* Attention of the `heads` query heads that share keys and values, in a cache with `room` for so many positions.
 * `scores` has room for SHARED times `stride`, which is at least the length, rounded up to lanes. */
static void attend(int32_t heads, const float *q, const float *keys, const float *values, size_t room, int32_t width,
                   int32_t length, float *scores, size_t stride, float *out) {
    int32_t h = 0;
    for (; h + SHARED <= heads; h += SHARED)
        attend_heads(SHARED, q + h * width, keys, values, room, width, length, scores, stride, out + h * width);
    for (; h < heads; h++)
        attend_heads(1, q + h * width, keys, values, room, width, length, scores, stride, out + h * width);
}

#endif
