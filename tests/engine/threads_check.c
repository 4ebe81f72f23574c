// Every piece of every phase exactly once, with its own phase's arguments, and the next phase not before the last piece.
#include "threads.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

enum { PIECES_MAX = 300 };

typedef struct { int phase, total; _Atomic int seen[PIECES_MAX]; } Phase;

static _Atomic int wrong, current;

static void pieces(void *with, int from, int to, int thread) {
    Phase *phase = with;
    if (phase->phase != atomic_load(&current) || thread < 0) atomic_fetch_add(&wrong, 1);
    for (int i = from; i < to; i++) atomic_fetch_add(&phase->seen[i], 1);
}

int main(int count, char **values) {
    const int threads = count > 1 ? atoi(values[1]) : 4, phases = count > 2 ? atoi(values[2]) : 20000;
    Threads *of = threads_open(threads);
    unsigned dice = 1;
    for (int number = 0; of && number < phases; number++) {
        dice = dice * 1664525u + 1013904223u;
        Phase phase = {.phase = number, .total = (int)(dice >> 8) % PIECES_MAX};
        atomic_store(&current, number);
        threads_each(of, phase.total, 1 + (int)(dice >> 20) % 7, pieces, &phase);
        for (int i = 0; i < PIECES_MAX; i++)
            if (atomic_load(&phase.seen[i]) != (i < phase.total)) atomic_fetch_add(&wrong, 1);
    }
    threads_close(of);
    printf("%d wrong in %d phases\n", atomic_load(&wrong), of ? phases : 0);
    return 0;
}
