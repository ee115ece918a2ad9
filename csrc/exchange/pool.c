/* A few threads that share the codec's tasks with the caller. Two callers at once: the second works alone. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "exchange/pool.h"

struct gtcb_pool {
    gtcb_executor executor;
    pthread_mutex_t busy, lock;
    pthread_cond_t start, finished;
    void (*task)(void *context, size_t i);
    void *context;
    size_t count;
    atomic_size_t next;
    size_t running;                /* workers that have not ended the present job */
    uint64_t job;
    bool stop;
    size_t workers;
    pthread_t threads[];
};

static void work(gtcb_pool *pool)
{
    for (size_t i; (i = atomic_fetch_add(&pool->next, 1)) < pool->count;)
        pool->task(pool->context, i);
}

static void *worker(void *self)
{
    gtcb_pool *pool = self;
    pthread_mutex_lock(&pool->lock);
    for (uint64_t last = 0;;) {
        while (!pool->stop && pool->job == last)
            pthread_cond_wait(&pool->start, &pool->lock);
        if (pool->stop)
            break;
        last = pool->job;
        pthread_mutex_unlock(&pool->lock);
        work(pool);
        pthread_mutex_lock(&pool->lock);
        if (--pool->running == 0)
            pthread_cond_signal(&pool->finished);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

static void run(void *self, void (*task)(void *context, size_t i), void *context, size_t count)
{
    gtcb_pool *pool = self;
    if (count < 2 || pthread_mutex_trylock(&pool->busy) != 0) {
        for (size_t i = 0; i < count; i++)
            task(context, i);
        return;
    }
    pthread_mutex_lock(&pool->lock);
    pool->task = task;
    pool->context = context;
    pool->count = count;
    atomic_store(&pool->next, 0);
    pool->running = pool->workers;
    pool->job++;
    pthread_cond_broadcast(&pool->start);
    pthread_mutex_unlock(&pool->lock);
    work(pool);
    pthread_mutex_lock(&pool->lock);
    while (pool->running)
        pthread_cond_wait(&pool->finished, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
    pthread_mutex_unlock(&pool->busy);
}

gtcb_status gtcb_pool_open(size_t threads, gtcb_pool **out)
{
    size_t workers = threads - 1;
    gtcb_pool *pool = calloc(1, sizeof *pool + workers * sizeof *pool->threads);
    if (!pool)
        return GTCB_NO_MEMORY;
    pool->executor.run = run;
    pool->executor.self = pool;
    pool->executor.threads = threads;
    pthread_mutex_init(&pool->busy, NULL);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->start, NULL);
    pthread_cond_init(&pool->finished, NULL);
    while (pool->workers < workers) {
        if (pthread_create(&pool->threads[pool->workers], NULL, worker, pool) != 0) {
            gtcb_pool_close(pool);
            return GTCB_NO_MEMORY;
        }
        pool->workers++;
    }
    *out = pool;
    return GTCB_OK;
}

void gtcb_pool_close(gtcb_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->stop = true;
    pthread_cond_broadcast(&pool->start);
    pthread_mutex_unlock(&pool->lock);
    for (size_t i = 0; i < pool->workers; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_mutex_destroy(&pool->busy);
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->start);
    pthread_cond_destroy(&pool->finished);
    free(pool);
}

const gtcb_executor *gtcb_pool_executor(gtcb_pool *pool)
{
    return pool && pool->workers ? &pool->executor : NULL;
}
