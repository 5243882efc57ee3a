/* Decoding of one stage on a CPU: int8 weights, everything else in float, the same bits on every processor.
 *
 * A matrix product takes int8 weights with a scale per output and rows of int8 activations with a scale per row; its
 * sums are int32 and so exact in any order. All float arithmetic has one fixed order (see vectors.h). Rows are
 * independent: results do not depend on which are decoded together, nor in which thread (batch invariance).
 *
 * The caller owns all memory that structures point to, and keeps it while a session is open. Sessions share only a
 * model, which they only read, so any number of threads may run them.
 */
#ifndef AUDIOLM_KERNEL_H
#define AUDIOLM_KERNEL_H

#include <stddef.h>
#include <stdint.h>

enum {
    AUDIOLM_NO_MEMORY = -1,
    AUDIOLM_BAD_SIZE = -2,   /* an impossible size or index */
    AUDIOLM_NOT_FINITE = -3, /* activations or logits are not finite: the weights are broken */
};

enum { AUDIOLM_HOTTEST = 1000 };

/* Weights w[outputs][inputs] as int8 in [-127, 127] times a scale per output. In memory they are stored as
 * [outputs / 16][inputs / 4][16][4], padded with zeros to 16 outputs and 8 inputs. */
typedef struct {
    int32_t outputs, inputs; /* both padded */
    const int8_t *values;
    const float *scales; /* [outputs] */
    const int32_t *sums; /* [outputs], of an output's values */
} audiolm_matrix;

/* Layer norm, or RMS norm if there is no bias. */
typedef struct {
    const float *weight, *bias; /* [width] */
    float epsilon;
} audiolm_norm;

typedef struct {
    audiolm_norm attention_norm, feedforward_norm;
    audiolm_norm query_norm, key_norm; /* of each head before it is rotated; without weights there is none */
    audiolm_matrix qkv, output, up, down;
} audiolm_block;

/* Maps a frame's hidden state and its codes so far to the hidden state for its next code. */
typedef struct {
    audiolm_norm codes_norm, norm;
    audiolm_matrix up, down;
} audiolm_level;

typedef struct {
    int32_t width, heads, kv_heads, head_width, feedforward, layers;
    int32_t gated;       /* 1 for SwiGLU: `up` has twice the outputs, gates first; 0 for GELU */
    int32_t quantizers;  /* codes per step; 1 if a step is a token */
    int32_t vocabulary;  /* ids that each of them can have */
    const double *turns; /* [head_width / 2], radians per position */
    const float *ids;    /* [quantizers * vocabulary][width]: input embeddings */
    audiolm_matrix head; /* the output matrix: logits of all ids */
    const audiolm_block *blocks;
    audiolm_norm norm;
    const audiolm_level *levels; /* [quantizers - 1], NULL if a step is a token and in a model that fills windows */
    const float *asked;          /* [quantizers + 1][width] of a model that fills windows: which quantizer to predict,
                                  * the last one none; its `ids` have one more row, for unknown codes. Else NULL. */
} audiolm_model;

/* One sequence that the model decodes for an item: its own, or one of its guides. */
typedef struct {
    int32_t known;            /* positions before the first one to sample, at least 1 */
    int32_t shared;           /* of these, how many at the beginning equal those of `like`; a multiple of 8 */
    int32_t like;             /* number of an earlier branch, counted over all items, that itself shares none */
    const int32_t *ids;       /* [known][quantizers] */
    const float *features;    /* [known + steps][width]: added to the inputs; NULL for none */
    const int32_t *positions; /* [known + steps], not negative */
} audiolm_branch;

typedef struct {
    int32_t steps;        /* to sample */
    int32_t branches;     /* 1, or 1 plus the number of guides */
    int32_t stop;         /* an id after which nothing is sampled, or -1 */
    float heat;           /* factor of the temperature, from 1 to AUDIOLM_HOTTEST; may change between calls */
    const int32_t *lows;  /* [steps]: ids are sampled from low to low + size */
    const float *uniform; /* [steps][quantizers], in (0, 1) */
    int32_t *made;        /* [steps][quantizers]: the result */
} audiolm_item;

/* Classifier-free guidance, logits + guidance * (logits - weighted sum of the guides'); temperature, top-k, top-p. */
typedef struct {
    double temperature, top_p;
    int32_t top_k;       /* 0: all */
    int32_t size;        /* ids to sample from */
    int32_t guides;      /* per item that has any */
    float guidance;
    const float *shares; /* [guides]: their weights */
} audiolm_sampling;

/* Frames for which a model predicts one quantizer after another, all frames at once. */
typedef struct {
    int32_t frames, known; /* frames at the beginning that are known in every quantizer */
    int32_t *codes;        /* [quantizers][frames], -1 where unknown: the result */
    const float *uniform;  /* [frames - known] in (0, 1), for the quantizer to sample */
} audiolm_window;

typedef struct audiolm_session audiolm_session;

/* The kernel and the source that this file was compiled for, to compare with what the caller expects. */
const char *audiolm_kernel(void);
const char *audiolm_source(void);
/* Total size of all structures above. */
size_t audiolm_layout(void);
/* Whether the processor supports a kernel ("plain", "avx2", "avx512"); 0 for an unknown name. */
int audiolm_supports(const char *kernel);

/* y[rows][outputs] = x[rows][inputs] times the weights; `x` is padded with zeros like the weights. 0 or an error. */
int audiolm_product(const audiolm_matrix *weights, int32_t rows, const float *x, float *y);

/* A session for `count` items, whose branches follow each other in one array. Sets `error` if it returns NULL. */
audiolm_session *audiolm_open(const audiolm_model *model, int32_t count, const audiolm_item *items,
                              const audiolm_branch *branches, const audiolm_sampling *sampling, int *error);
/* Prefills the known part of a branch; branches go in order. 0 or an error. */
int audiolm_prefill(audiolm_session *session, int32_t branch);
/* Decodes up to `steps` more steps of every item; the number of new ids, 0 when all are done, or an error. */
int64_t audiolm_advance(audiolm_session *session, int32_t steps);
/* The hidden state `[width]` of a prefilled branch, from which its next ids are predicted. */
const float *audiolm_state(const audiolm_session *session, int32_t branch);
void audiolm_close(audiolm_session *session);

/* Samples one quantizer's codes of a window, given all that are known. 0 or an error. */
int audiolm_fill(const audiolm_model *model, const audiolm_window *window, const audiolm_sampling *sampling,
                 int32_t quantizer);

#endif
