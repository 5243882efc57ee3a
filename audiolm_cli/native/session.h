/* What decoding keeps between calls: the caches, and room for the rows of a tile. session.c opens and closes it. */
#ifndef AUDIOLM_SESSION_H
#define AUDIOLM_SESSION_H

#include "kernel.h"
#include "workspace.h"

#ifndef KERNEL_NEAR
#define KERNEL_NEAR (8 << 20)
#endif
enum { NEAR = KERNEL_NEAR }; /* bytes that are read fast, of what cores share */

/* A branch's cache and what comes next of it. */
typedef struct slot {
    const audiolm_branch *branch;
    const struct slot *like; /* has the cache of the positions that the branch shares */
    size_t length;        /* positions behind these that there is room for, a multiple of the lanes */
    float *keys, *values; /* [layers][kv_heads][length * head width], see attention.h */
    float *hidden;        /* [width] behind the last norm */
} slot;

struct audiolm_session {
    workspace work;
    const audiolm_item *items;
    int32_t count, slots, prefilled;
    size_t weights; /* bytes that a step reads of them */
    int32_t *first, *made; /* of each item: its first slot, its steps so far */
    slot *slot;
    /* rows of a tile */
    slot *row_slot[TILE];
    int32_t row_place[TILE];
    float *before, *both; /* [TILE][width], [TILE][2 * width]: codes so far; these and hidden states */
};

#endif
