/* Decoding of one stage on a CPU: int8 weights, everything else in float, the same bits on every processor.
 *
 * A matrix product takes int8 weights with a scale for each output and rows of int8 activations with a scale for each
 * row; its sums are int32 and so exact in any order. All float arithmetic has one fixed order (see vectors.h). Rows do
 * not depend on each other: what is decoded together, and in which thread, makes no difference.
 *
 * Whoever calls owns all memory that structures point to, and keeps it while a session is open. Sessions share nothing
 * but a model, which they only read: threads may run as many as they like.
 */
#ifndef AUDIOLM_KERNEL_H
#define AUDIOLM_KERNEL_H

#include <stddef.h>
#include <stdint.h>

enum {
    AUDIOLM_NO_MEMORY = -1,
    AUDIOLM_BAD_SIZE = -2,   /* a size or an index that cannot be */
    AUDIOLM_NOT_FINITE = -3, /* activations or logits that are no numbers: the weights are broken */
};

/* Weights w[outputs][inputs] as int8 in [-127, 127] times a scale for each output. In memory they stand as
 * [outputs / 16][inputs / 4][16][4], padded with zeros to 16 outputs and 8 inputs. */
typedef struct {
    int32_t outputs, inputs; /* both padded */
    const int8_t *values;
    const float *scales; /* [outputs] */
    const int32_t *sums; /* [outputs], of an output's values */
} audiolm_matrix;

typedef struct {
    const float *weight, *bias; /* [width] */
} audiolm_norm;

typedef struct {
    audiolm_norm attention_norm, feedforward_norm;
    audiolm_matrix qkv, output, up, down;
} audiolm_block;

/* What makes a frame's next code from its hidden state and the codes so far. */
typedef struct {
    audiolm_norm codes_norm, norm;
    audiolm_matrix up, down;
} audiolm_level;

typedef struct {
    int32_t width, heads, kv_heads, feedforward, layers;
    int32_t quantizers;  /* codes of a step; 1 where a step is a token */
    int32_t vocabulary;  /* ids that each of them can have */
    const double *turns; /* [width / heads / 2], radians a position */
    const float *ids;    /* [quantizers * vocabulary][width]: what ids mean as inputs */
    audiolm_matrix head; /* the same as outputs: logits of all ids */
    const audiolm_block *blocks;
    audiolm_norm norm;
    const audiolm_level *levels; /* [quantizers - 1], NULL where a step is a token and in a model that fills windows */
    const float *asked;          /* [quantizers + 1][width] of a model that fills windows: which quantizer is asked for,
                                  * the last one none; its `ids` have one row more, for what is not known. Else NULL. */
} audiolm_model;

/* One sequence that a token is made for: the item's own, or one of its guides. */
typedef struct {
    int32_t known;            /* positions before the first that is made, at least 1 */
    int32_t shared;           /* of these, how many at the beginning are those of `like`; a multiple of 8 */
    int32_t like;             /* number of an earlier branch, counted over all items, that shares nothing itself */
    const int32_t *ids;       /* [known][quantizers] */
    const float *features;    /* [known + steps][width]: what is added to the inputs */
    const int32_t *positions; /* [known + steps], not negative */
} audiolm_branch;

typedef struct {
    int32_t steps;        /* to be made */
    int32_t branches;     /* 1 and the number of guides */
    int32_t stop;         /* an id behind which nothing is made, or -1 */
    const int32_t *lows;  /* [steps]: ids are drawn from low to low + size */
    const float *uniform; /* [steps][quantizers], in (0, 1) */
    int32_t *made;        /* [steps][quantizers]: the result */
} audiolm_item;

/* logits + guidance * (logits - those of the guides, weighted by their shares), then temperature, top-k, top-p. */
typedef struct {
    double temperature, top_p;
    int32_t top_k;       /* 0: all */
    int32_t size;        /* ids to draw from */
    int32_t guides;      /* that an item has if it has any */
    float guidance;
    const float *shares; /* [guides] */
} audiolm_sampling;

/* Frames of which a model makes one quantizer's codes after another, of all frames at once. */
typedef struct {
    int32_t frames, known; /* those at the beginning that are known of every quantizer */
    int32_t *codes;        /* [quantizers][frames], -1 where unknown: the result */
    const float *uniform;  /* [frames - known] in (0, 1), for the quantizer that is made */
} audiolm_window;

typedef struct audiolm_session audiolm_session;

/* What this file was compiled for, and of which source: to be compared with what the caller knows. */
const char *audiolm_kernel(void);
const char *audiolm_source(void);
/* Size of all structures above together. */
size_t audiolm_layout(void);
/* Whether the processor has what a kernel ("plain", "avx2", "avx512") needs; 0 for an unknown name. */
int audiolm_supports(const char *kernel);

/* y[rows][outputs] = x[rows][inputs] times the weights; `x` is padded with zeros as the weights are. 0 or an error. */
int audiolm_product(const audiolm_matrix *weights, int32_t rows, const float *x, float *y);

/* A session for `count` items, whose branches stand one behind the other. Sets `error` where it returns NULL. */
audiolm_session *audiolm_open(const audiolm_model *model, int32_t count, const audiolm_item *items,
                              const audiolm_branch *branches, const audiolm_sampling *sampling, int *error);
/* Reads the known part of a branch; branches in order. 0 or an error. */
int audiolm_prefill(audiolm_session *session, int32_t branch);
/* Makes up to `steps` more steps of every item; how many ids that were, 0 when all are done, or an error. */
int64_t audiolm_advance(audiolm_session *session, int32_t steps);
/* The hidden state `[width]` of a prefilled branch, of which its next ids come. */
const float *audiolm_state(const audiolm_session *session, int32_t branch);
void audiolm_close(audiolm_session *session);

/* Makes a quantizer's codes of a window, from all that is known of it. 0 or an error. */
int audiolm_fill(const audiolm_model *model, const audiolm_window *window, const audiolm_sampling *sampling,
                 int32_t quantizer);

#endif
