// The threads of one engine: they run one function together, meet at barriers, and sleep in between.
//
// A waiting thread spins for some microseconds, as long as the others are about to arrive, and then sleeps in the
// kernel: the machine belongs to its owner, and a core that spins is a core taken away. Work inside a phase is handed
// out by a counter, so that a thread which lost its core for a while holds up one piece of work and not half of them.

#ifndef MESHNODE_THREADS_H
#define MESHNODE_THREADS_H

#include <stdatomic.h>
#include <stdint.h>

#define THREADS_MAX 64

typedef struct Threads Threads;
typedef void (*Body)(void *with, int thread);

Threads *threads_open(int count);
void threads_close(Threads *of);
int threads_count(const Threads *of);
// Run `body` in every thread, the caller among them, and return when all have returned.
void threads_run(Threads *of, Body body, void *with);
// Inside a body: wait until all threads of it are here.
void threads_meet(Threads *of);

#endif
