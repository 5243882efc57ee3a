/* Products of int8 rows with int8 weights. Only one function, `multiply`, depends on the processor; its sums are
 * integers, the same in any order. */
#ifndef AUDIOLM_PRODUCTS_H
#define AUDIOLM_PRODUCTS_H

#include "kernel.h"
#include "vectors.h"

enum {
    OUTPUTS = 16,   /* outputs computed together */
    INPUTS = 4,     /* inputs whose weights are adjacent for each of them */
    UNROLLED = 8,   /* inputs are padded to a multiple of it */
    MOST_INPUTS = 1 << 17, /* 127 * 127 times this many still fit into int32 */
};

#if defined(KERNEL_AVX512) && !defined(KERNEL_EMULATED)
#include <immintrin.h>
#elif defined(KERNEL_AVX2)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

/* Prefetches the weights of the next block of outputs, as far ahead as this block is long: while several rows use this
 * block, nothing else would. The address is computed as an integer, since nothing lies behind the last block. */
INLINE void ask_ahead(const int8_t *w, int32_t inputs) {
    __builtin_prefetch((const void *)((uintptr_t)w + (uintptr_t)OUTPUTS * (uintptr_t)inputs));
}

#if defined(KERNEL_AVX512)

typedef uint8_t activation;
enum {
    OFFSET = 128, /* VNNI multiplies unsigned by signed: activations are stored with this offset */
    FEW = 8,      /* this many rows take little longer than fewer */
};

#ifdef KERNEL_EMULATED /* tests all of this path but the instruction on processors without it */
typedef struct { int32_t lane[OUTPUTS]; } sums16;

INLINE sums16 nothing(void) { return (sums16){{0}}; }

INLINE sums16 multiply_add(sums16 total, const activation *x, const int8_t *w) {
    for (int n = 0; n < OUTPUTS * INPUTS; n++) total.lane[n / INPUTS] += (int32_t)x[n % INPUTS] * w[n];
    return total;
}

INLINE void put(int32_t *to, sums16 a, sums16 b) {
    for (int n = 0; n < OUTPUTS; n++) to[n] = a.lane[n] + b.lane[n];
}
#else
typedef __m512i sums16;

INLINE sums16 nothing(void) { return _mm512_setzero_si512(); }

INLINE sums16 multiply_add(sums16 total, const activation *x, const int8_t *w) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm512_dpbusd_epi32(total, _mm512_set1_epi32(four), _mm512_loadu_si512(w));
}

INLINE void put(int32_t *to, sums16 a, sums16 b) { _mm512_storeu_si512(to, _mm512_add_epi32(a, b)); }
#endif

/* Sums of 16 outputs for `rows` rows, one or two: to[row][output]. Two sums each hide the instruction's latency. */
INLINE void multiply(const int rows, const int8_t *restrict w, int32_t inputs, const activation *restrict x,
                     size_t stride, int32_t (*restrict to)[OUTPUTS]) {
    sums16 even[2] = {nothing(), nothing()}, odd[2] = {nothing(), nothing()};
    for (int32_t k = 0; k < inputs; k += 2 * INPUTS, w += 2 * OUTPUTS * INPUTS) {
        ask_ahead(w, inputs);
        ask_ahead(w + OUTPUTS * INPUTS, inputs);
        for (int r = 0; r < rows; r++) {
            even[r] = multiply_add(even[r], x + r * stride + k, w);
            odd[r] = multiply_add(odd[r], x + r * stride + k + INPUTS, w + OUTPUTS * INPUTS);
        }
    }
    for (int r = 0; r < rows; r++) put(to[r], even[r], odd[r]);
}

#elif defined(KERNEL_AVX2)

/* Activations are int16, so that only weights must be widened; the instruction for bytes would saturate. */
typedef int16_t activation;
enum { OFFSET = 0, FEW = 2 };

/* Sums of 16 outputs for one or two rows: to[row][output]. A register holds two sums of each of four outputs. */
INLINE void multiply(const int rows, const int8_t *restrict w, int32_t inputs, const activation *restrict x,
                     size_t stride, int32_t (*restrict to)[OUTPUTS]) {
    __m256i total[2][4];
    for (int r = 0; r < rows; r++)
        for (int n = 0; n < 4; n++) total[r][n] = _mm256_setzero_si256();
    for (int32_t k = 0; k < inputs; k += INPUTS, w += OUTPUTS * INPUTS) {
        __m256i four[2];
        ask_ahead(w, inputs);
        for (int r = 0; r < rows; r++) {
            int64_t packed;
            memcpy(&packed, x + r * stride + k, sizeof packed);
            four[r] = _mm256_set1_epi64x(packed);
        }
        for (int n = 0; n < 4; n++) {
            __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + 16 * n)));
            for (int r = 0; r < rows; r++)
                total[r][n] = _mm256_add_epi32(total[r][n], _mm256_madd_epi16(wide, four[r]));
        }
    }
    for (int r = 0; r < rows; r++)
        for (int n = 0; n < 4; n += 2) {
            __m256i pairs = _mm256_hadd_epi32(total[r][n], total[r][n + 1]); /* outputs 0 1 4 5 2 3 6 7 */
            _mm256_storeu_si256((__m256i *)(to[r] + 4 * n), _mm256_permute4x64_epi64(pairs, 0xd8));
        }
}

#else

typedef int16_t activation;
enum { OFFSET = 0, FEW = 2 };

typedef int8_t bytes __attribute__((vector_size(16)));
typedef int16_t halves __attribute__((vector_size(32)));

/* Sums of 16 outputs for `rows` rows: to[row][output]. A vector holds two sums of each of four outputs. Products of two
 * bytes fit into 16 bits; shifts extract the two halves of a word, which are added to the sums. */
INLINE void multiply(const int rows, const int8_t *restrict w, int32_t inputs, const activation *restrict x,
                     size_t stride, int32_t (*restrict to)[OUTPUTS]) {
    i8 total[2][4] = {{{0}}};
    for (int32_t k = 0; k < inputs; k += INPUTS, w += OUTPUTS * INPUTS) {
        halves four[2];
        for (int r = 0; r < rows; r++)
            for (int n = 0; n < 4; n++)
                memcpy((char *)(four + r) + n * INPUTS * sizeof *x, x + r * stride + k, INPUTS * sizeof *x);
        for (int n = 0; n < 4; n++) {
            bytes narrow;
            memcpy(&narrow, w + 16 * n, sizeof narrow);
            halves wide = __builtin_convertvector(narrow, halves);
            for (int r = 0; r < rows; r++) {
                halves products = wide * four[r];
                total[r][n] += ((i8)products >> 16) + ((i8)((w8)products << 16) >> 16);
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int n = 0; n < OUTPUTS; n++) to[r][n] = total[r][n / 4][n % 4 * 2] + total[r][n / 4][n % 4 * 2 + 1];
}

#endif

/* Quantizes a row to int8 with a scale, the largest magnitude / 127; rows of nearly zero become zero. Returns whether
 * all values are finite. */
static inline int quantize(const float *restrict x, int32_t width, activation *restrict q, float *restrict scale) {
    typedef activation a8 __attribute__((vector_size(LANES * sizeof(activation))));
    i8 most = {0};
    for (int32_t n = 0; n < width; n += LANES) {
        i8 size = bits(magnitude(load(x + n))); /* positive floats have the order of their bits, NaN on top */
        i8 more = size > most;
        most = (more & size) | (~more & most);
    }
    int32_t largest = 0;
    for (int n = 0; n < LANES; n++) largest = most[n] > largest ? most[n] : largest;
    float peak;
    memcpy(&peak, &largest, sizeof peak);
    int finite = largest < 0x7f800000;
    float inverse = finite && peak > 1e-30f ? 127.0f / peak : 0.0f;
    *scale = inverse > 0 ? peak / 127.0f : 0.0f;
    for (int32_t n = 0; n < width; n += LANES) {
        i8 whole = finite ? nearest(load(x + n) * inverse) + OFFSET : (i8){0};
        a8 narrow = __builtin_convertvector(whole, a8);
        memcpy(q + n, &narrow, sizeof narrow);
    }
    return finite;
}

/* Whether a product replaces the output or is added to it. */
enum result { REPLACE, ADD };

INLINE void scaled(const int rows, const audiolm_matrix *m, int32_t block, const activation *x, size_t stride,
                   const float *scales, float *y, size_t y_stride, enum result result) {
    int32_t sums[2][OUTPUTS];
    const int8_t *w = m->values + (size_t)block * OUTPUTS * (size_t)m->inputs;
    multiply(rows, w, m->inputs, x, stride, sums);
    for (int r = 0; r < rows; r++)
        for (int n = 0; n < OUTPUTS; n += LANES) {
            i8 whole, offset;
            memcpy(&whole, sums[r] + n, sizeof whole);
            memcpy(&offset, m->sums + block * OUTPUTS + n, sizeof offset);
            f8 value = __builtin_convertvector(whole - OFFSET * offset, f8);
            value = (value * scales[r]) * load(m->scales + block * OUTPUTS + n);
            float *to = y + r * y_stride + n;
            store(to, result == ADD ? load(to) + value : value);
        }
}

/* y[rows][16 * blocks] = x times the weights of the outputs from 16 * first on. Each block of weights is read once. */
static inline void product(const audiolm_matrix *m, int32_t first, int32_t blocks, int32_t rows, const activation *x,
                    size_t stride, const float *scales, float *y, size_t y_stride, enum result result) {
    for (int32_t n = 0; n < blocks; n++, y += OUTPUTS) {
        int32_t r = 0;
        for (; r + 1 < rows; r += 2)
            scaled(2, m, first + n, x + r * stride, stride, scales + r, y + r * y_stride, y_stride, result);
        if (r < rows) scaled(1, m, first + n, x + r * stride, stride, scales + r, y + r * y_stride, y_stride, result);
    }
}

#endif
