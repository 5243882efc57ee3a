/* The state of decoding between calls: the KV caches, and room for a tile's rows. session.c opens and closes it. */
#ifndef AUDIOLM_SESSION_H
#define AUDIOLM_SESSION_H

#include "kernel.h"
#include "workspace.h"

#ifndef KERNEL_NEAR
#define KERNEL_NEAR (8 << 20)
#endif
enum { NEAR = KERNEL_NEAR }; /* of a cache shared by cores that are read fast */

/* A branch's KV cache and its latest hidden state. */
typedef struct slot {
    const audiolm_branch *branch;
    const struct slot *like; /* its cache has the positions that the branch shares */
    size_t length;        /* capacity in positions after the shared ones, a multiple of the lanes */
    float *keys, *values; /* [layers][kv_heads][length * head width], see attention.h */
    float *hidden;        /* [width] after the final norm */
} slot;

struct audiolm_session {
    workspace work;
    const audiolm_item *items;
    int32_t count, slots, prefilled;
    size_t weights; /* bytes of weights read per step */
    int32_t *first, *made; /* by item: first slot, steps so far */
    slot *slot;
    /* rows of a tile */
    slot *row_slot[TILE];
    int32_t row_place[TILE];
    float *before, *both; /* [TILE][width], [TILE][2 * width]: sums of the codes so far; hidden states and these */
};

#endif
