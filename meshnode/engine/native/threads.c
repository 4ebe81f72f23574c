#define _GNU_SOURCE
#include "threads.h"

#include <pthread.h>
#include <stdlib.h>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

enum { SPINS = 400 };  // about 20 microseconds: most phases of a decode step are shorter

struct Threads {
    int count;
    pthread_t threads[THREADS_MAX];
    Body body;
    void *with;
    _Atomic uint32_t runs;     // grows by one a run; workers wait for it
    _Atomic uint32_t arrived;  // at the barrier
    _Atomic uint32_t meetings; // grows by one when all are there
    _Atomic int32_t sleeping;
    _Atomic int closing;
};

typedef struct { Threads *of; int thread; } Worker;

static inline void rest(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void wait_change(Threads *of, _Atomic uint32_t *word, uint32_t old) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != old) return;
        rest();
    }
    atomic_fetch_add(&of->sleeping, 1);
    while (atomic_load(word) == old) {
#if defined(__linux__)
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
#else
        sched_yield();
#endif
    }
    atomic_fetch_sub(&of->sleeping, 1);
}

static void change(Threads *of, _Atomic uint32_t *word) {
    atomic_fetch_add(word, 1);
#if defined(__linux__)
    if (atomic_load(&of->sleeping) > 0) syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, THREADS_MAX, NULL, NULL, 0);
#endif
}

void threads_meet(Threads *of) {
    if (of->count == 1) return;
    uint32_t meeting = atomic_load(&of->meetings);
    if (atomic_fetch_add(&of->arrived, 1) + 1 == (uint32_t)of->count) {
        atomic_store(&of->arrived, 0);
        change(of, &of->meetings);
    } else {
        wait_change(of, &of->meetings, meeting);
    }
}

static void *work(void *argument) {
    Worker me = *(Worker *)argument;
    free(argument);
    for (uint32_t seen = 0;; seen++) {
        wait_change(me.of, &me.of->runs, seen);
        if (atomic_load(&me.of->closing)) return NULL;
        me.of->body(me.of->with, me.thread);
        threads_meet(me.of);
    }
}

Threads *threads_open(int count) {
    if (count < 1 || count > THREADS_MAX) return NULL;
    Threads *of = calloc(1, sizeof *of);
    if (!of) return NULL;
    of->count = 1;
    for (int thread = 1; thread < count; thread++) {
        Worker *me = malloc(sizeof *me);
        if (me) *me = (Worker){of, thread};
        if (!me || pthread_create(&of->threads[thread], NULL, work, me)) {
            free(me);
            threads_close(of);
            return NULL;
        }
        of->count++;
    }
    return of;
}

void threads_close(Threads *of) {
    if (!of) return;
    atomic_store(&of->closing, 1);
    change(of, &of->runs);
    for (int thread = 1; thread < of->count; thread++) pthread_join(of->threads[thread], NULL);
    free(of);
}

int threads_count(const Threads *of) { return of->count; }

void threads_run(Threads *of, Body body, void *with) {
    of->body = body;
    of->with = with;
    if (of->count > 1) change(of, &of->runs);
    body(with, 0);
    threads_meet(of);
}
