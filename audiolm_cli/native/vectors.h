/* Float arithmetic in one fixed order, eight lanes at a time, without the C library's math functions, whose results
 * depend on the processor. Compiled without fused multiply-add, every operation here is one that IEEE 754 defines
 * exactly, so all compilers and processors give the same bits. */
#ifndef AUDIOLM_VECTORS_H
#define AUDIOLM_VECTORS_H

#include <float.h>
#include <stdint.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0
#error "float arithmetic must be done in float"
#endif
#ifdef __FAST_MATH__
#error "float arithmetic must be done as it is written"
#endif

enum { LANES = 8 };

typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));
typedef uint32_t w8 __attribute__((vector_size(32))); /* unsigned, so that overflow wraps */

static inline f8 load(const float *p) {
    f8 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void store(float *p, f8 v) { memcpy(p, &v, sizeof v); }

static inline f8 every(float x) { return (f8){x, x, x, x, x, x, x, x}; }

static inline i8 bits(f8 v) { return (i8)v; }

static inline f8 magnitude(f8 v) { return (f8)(bits(v) & 0x7fffffff); }

static inline f8 choose(i8 mask, f8 yes, f8 no) { return (f8)((mask & bits(yes)) | (~mask & bits(no))); }

static inline f8 larger(f8 a, f8 b) { return choose(a > b, a, b); }

/* The sum of the lanes, always in this order. */
static inline float sum(f8 v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

static inline float maximum(f8 v) {
    float most = v[0];
    for (int n = 1; n < LANES; n++) most = v[n] > most ? v[n] : most;
    return most;
}

static inline float root(float x) { return __builtin_sqrtf(x); } /* exact, one instruction everywhere */

static const float SHIFT = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */

/* The nearest integers, ties to even, of values below 2^22; undefined for others. */
static inline i8 nearest(f8 x) { return (i8)((w8)(x + SHIFT) - (w8)every(SHIFT)); }

/* e^x for x <= 0, with a relative error of 1e-7; 0 below -87. Polynomial: Cephes' expf. */
static inline f8 exponential(f8 x) {
    f8 shifted = x * 1.44269504f + SHIFT, n = shifted - SHIFT;
    f8 r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    f8 p = every(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    f8 y = (p * (r * r) + r) + 1.0f;
    w8 power = (w8)shifted - (w8)every(SHIFT);
    f8 scaled = y * (f8)((power + 127) << 23);
    return (f8)(bits(scaled) & (x > -87.0f));
}

/* GELU: x times the normal distribution's probability below x, to 1.5e-7 of x (Abramowitz and Stegun, 7.1.26). */
static inline f8 gelu(f8 x) {
    f8 z = magnitude(x) * 0.70710678f;
    f8 t = 1.0f / (z * 0.3275911f + 1.0f);
    f8 p = every(1.061405429f);
    p = p * t + -1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t + -0.284496736f;
    p = p * t + 0.254829592f;
    f8 outside = (p * t) * exponential(-(z * z)); /* 1 - erf(z) */
    f8 above = x * (1.0f - 0.5f * outside), below = x * (0.5f * outside);
    return choose(x < 0.0f, below, above);
}

/* Sine and cosine of an angle in [0, 2^24): reduced by multiples of pi/2 in two parts, then fdlibm's polynomials. */
static inline void sine_cosine(double angle, float *sine, float *cosine) {
    const double shift = 6755399441055744.0; /* 1.5 * 2^52 */
    double quarter = (angle * 0.63661977236758134308 + shift) - shift;
    double r = (angle - quarter * 1.57079632673412561417) - quarter * 6.07710050650619224932e-11;
    double z = r * r;
    double s = 1.58969099521155010221e-10;
    s = s * z + -2.50507602534068634195e-08;
    s = s * z + 2.75573137070700676789e-06;
    s = s * z + -1.98412698298579493134e-04;
    s = s * z + 8.33333333332248946124e-03;
    s = s * z + -1.66666666666666324348e-01;
    s = (s * z) * r + r;
    double c = -1.13596475577881948265e-11;
    c = c * z + 2.08757232129817482790e-09;
    c = c * z + -2.75573143513906633035e-07;
    c = c * z + 2.48015872894767294178e-05;
    c = c * z + -1.38888888888741095749e-03;
    c = c * z + 4.16666666666666019037e-02;
    c = (c * z) * z + (1.0 - 0.5 * z);
    int64_t turn = (int64_t)quarter & 3;
    double up = turn & 1 ? c : s, right = turn & 1 ? s : c;
    *sine = (float)(turn & 2 ? -up : up);
    *cosine = (float)(turn == 1 || turn == 2 ? -right : right);
}

/* Layer norm of a row whose width is a multiple of the lanes; without `bias` RMS norm, also in place. */
static inline void normalize(const float *x, const float *restrict weight, const float *restrict bias, float epsilon,
                             float *y, int32_t width) {
    f8 total = every(0), squares = every(0);
    if (bias)
        for (int32_t n = 0; n < width; n += LANES) total = total + load(x + n);
    float mean = sum(total) / (float)width;
    for (int32_t n = 0; n < width; n += LANES) {
        f8 centred = load(x + n) - mean;
        squares = squares + centred * centred;
    }
    float scale = 1.0f / root(sum(squares) / (float)width + epsilon);
    for (int32_t n = 0; n < width; n += LANES) {
        f8 value = ((load(x + n) - mean) * scale) * load(weight + n);
        store(y + n, bias ? value + load(bias + n) : value);
    }
}

/* SiLU: x times the logistic function of x. */
static inline f8 silu(f8 x) {
    f8 e = exponential(-magnitude(x));
    return x * (choose(x < 0.0f, e, every(1.0f)) / (1.0f + e));
}

/* A row's gates, through SiLU, times what they let through, which lies behind them. */
static inline void gate_row(float *x, int32_t width) {
    for (int32_t n = 0; n < width; n += LANES) store(x + n, silu(load(x + n)) * load(x + width + n));
}

static inline void gelu_row(float *x, int32_t width) {
    for (int32_t n = 0; n < width; n += LANES) store(x + n, gelu(load(x + n)));
}

static inline void add_row(float *restrict x, const float *restrict y, int32_t width) {
    for (int32_t n = 0; n < width; n += LANES) store(x + n, load(x + n) + load(y + n));
}

#endif
