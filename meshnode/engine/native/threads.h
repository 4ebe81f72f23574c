// The threads of one engine: the caller does the work, and whoever else has a core helps.
//
// Work is pieces, taken from a counter; `threads_each` returns when every piece is done, not when every thread is there.
// So a helper that lost its core to somebody else's process is not waited for, as it would be at a barrier: it holds up
// the pieces in its hands, and no more. A waiting thread spins for some microseconds, as long as the next work is about to come, and then sleeps in the
// kernel: the machine belongs to its owner, and a core that spins is a core taken away.

#ifndef MESHNODE_THREADS_H
#define MESHNODE_THREADS_H

#define THREADS_MAX 64

typedef struct Threads Threads;
// Pieces `from` to `to`, in thread `thread`; the caller's is 0.
typedef void (*Pieces)(void *with, int from, int to, int thread);

Threads *threads_open(int count);
void threads_close(Threads *of);
int threads_count(const Threads *of);
// All pieces up to `total`, handed out `grain` at a time. From one thread at a time.
void threads_each(Threads *of, int total, int grain, Pieces pieces, void *with);

#endif
