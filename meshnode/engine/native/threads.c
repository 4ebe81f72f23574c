#define _GNU_SOURCE
#include "threads.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

enum { SPINS = 400 };  // about 20 microseconds: most phases of a decode step are shorter

#define CLOSED 0xffffffffu

struct Threads {
    int count;
    pthread_t threads[THREADS_MAX];
    // The phase in the upper half, the next piece in the lower. A piece is taken by exchanging the whole word, so nobody
    // takes one of a phase that is over; and while somebody has one, the phase cannot end and what it says below stands.
    _Atomic uint64_t work;
    _Atomic uint32_t total, grain;
    _Atomic(Pieces) pieces;
    _Atomic(void *) with;
    _Atomic uint32_t done;      // pieces of this phase
    _Atomic uint32_t turn;      // grows with each phase: what sleepers wait for
    _Atomic int32_t sleepers;
    _Atomic int32_t waited_for; // the caller sleeps until the last piece is done
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

static void sleep_while(_Atomic uint32_t *word, uint32_t value) {
#if defined(__linux__)
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
#else
    if (atomic_load(word) == value) sched_yield();
#endif
}

static void wake(_Atomic uint32_t *word) {
#if defined(__linux__)
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, THREADS_MAX, NULL, NULL, 0);
#else
    (void)word;
#endif
}

// Some pieces of the phase that is open, if any are left.
static int take_some(Threads *of, int thread) {
    uint64_t work = atomic_load_explicit(&of->work, memory_order_acquire);
    for (;;) {
        const uint32_t from = (uint32_t)work, total = atomic_load_explicit(&of->total, memory_order_relaxed);
        const uint32_t grain = atomic_load_explicit(&of->grain, memory_order_relaxed);
        if (from >= total) return 0;  // CLOSED is greater than any
        if (!atomic_compare_exchange_weak(&of->work, &work, work + grain)) continue;
        const uint32_t to = from + grain < total ? from + grain : total;
        Pieces pieces = atomic_load_explicit(&of->pieces, memory_order_relaxed);
        pieces(atomic_load_explicit(&of->with, memory_order_relaxed), (int)from, (int)to, thread);
        atomic_fetch_add(&of->done, to - from);
        if (atomic_load(&of->waited_for)) wake(&of->done);
        return 1;
    }
}

static void *help(void *argument) {
    Worker me = *(Worker *)argument;
    Threads *of = me.of;
    free(argument);
    while (!atomic_load(&of->closing)) {
        const uint32_t turn = atomic_load(&of->turn);
        if (take_some(of, me.thread)) continue;
        int spins = 0;
        while (spins < SPINS && atomic_load_explicit(&of->turn, memory_order_relaxed) == turn) rest(), spins++;
        if (spins < SPINS) continue;
        atomic_fetch_add(&of->sleepers, 1);
        if (atomic_load(&of->turn) == turn && !atomic_load(&of->closing)) sleep_while(&of->turn, turn);
        atomic_fetch_sub(&of->sleepers, 1);
    }
    return NULL;
}

void threads_each(Threads *of, int total, int grain, Pieces pieces, void *with) {
    if (total <= 0) return;
    if (of->count == 1 || total <= grain) {
        pieces(with, 0, total, 0);
        return;
    }
    const uint64_t phase = ((atomic_load_explicit(&of->work, memory_order_relaxed) >> 32) + 1) << 32;
    atomic_store(&of->work, phase | CLOSED);  // from here on a late helper's exchange fails
    atomic_store_explicit(&of->done, 0, memory_order_relaxed);
    atomic_store_explicit(&of->total, (uint32_t)total, memory_order_relaxed);
    atomic_store_explicit(&of->grain, (uint32_t)grain, memory_order_relaxed);
    atomic_store_explicit(&of->pieces, pieces, memory_order_relaxed);
    atomic_store_explicit(&of->with, with, memory_order_relaxed);
    atomic_store(&of->work, phase);
    atomic_fetch_add(&of->turn, 1);
    if (atomic_load(&of->sleepers) > 0) wake(&of->turn);
    while (take_some(of, 0)) continue;
    for (int spins = 0; spins < SPINS; spins++) {
        if (atomic_load_explicit(&of->done, memory_order_acquire) == (uint32_t)total) return;
        rest();
    }
    atomic_store(&of->waited_for, 1);
    for (uint32_t done; (done = atomic_load(&of->done)) != (uint32_t)total;) sleep_while(&of->done, done);
    atomic_store(&of->waited_for, 0);
}

Threads *threads_open(int count) {
    if (count < 1 || count > THREADS_MAX) return NULL;
    Threads *of = calloc(1, sizeof *of);
    if (!of) return NULL;
    atomic_store(&of->work, CLOSED);
    of->count = 1;
    for (int thread = 1; thread < count; thread++) {
        Worker *me = malloc(sizeof *me);
        if (me) *me = (Worker){of, thread};
        if (!me || pthread_create(&of->threads[thread], NULL, help, me)) {
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
    atomic_fetch_add(&of->turn, 1);
    wake(&of->turn);
    for (int thread = 1; thread < of->count; thread++) pthread_join(of->threads[thread], NULL);
    free(of);
}

int threads_count(const Threads *of) { return of->count; }
