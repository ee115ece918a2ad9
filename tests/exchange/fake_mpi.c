#include "fake_mpi.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct letter {
    struct letter *next;
    struct receive *sender;                      /* the request of a long send: done when somebody takes it */
    int from, tag, bytes;
    char data[];
} letter;

typedef struct receive {
    struct receive *next;
    int from, tag, bytes, done, code;
    void *data;
} receive;

typedef struct { fake_world *world; int rank, code; letter *box; receive *posted; int long_tags[FAKE_NOTED], long_sends; } member;
struct fake_world { pthread_mutex_t lock; int size; member members[]; };

#define EAGER 65536                              /* longer messages wait, at their sender's, for a receive */
#define NOTED_ABOVE 4096                         /* bodies are, of which there is a note; letters are not */

static receive sent;                             /* the request of every other send: done at once */

fake_world *fake_open(int size)
{
    fake_world *w = calloc(1, sizeof *w + (size_t)size * sizeof *w->members);
    pthread_mutex_init(&w->lock, NULL);
    w->size = size;
    for (int r = 0; r < size; r++)
        w->members[r] = (member){.world = w, .rank = r};
    return w;
}

int fake_close(fake_world *w)
{
    int unread = 0;
    for (int r = 0; r < w->size; r++) {
        for (letter *l = w->members[r].box, *next; l; l = next) {
            next = l->next;
            unread++;
            free(l);
        }
        for (receive *p = w->members[r].posted, *next; p; p = next) {
            next = p->next;
            free(p);
        }
    }
    pthread_mutex_destroy(&w->lock);
    free(w);
    return unread;
}

gtcb_handle fake_comm(fake_world *w, int rank) { return (gtcb_handle)&w->members[rank]; }

void fake_break(fake_world *w, int rank, int code)
{
    pthread_mutex_lock(&w->lock);
    w->members[rank].code = code;
    pthread_mutex_unlock(&w->lock);
}

static void fill(receive *r, const void *data, int bytes)
{
    r->code = bytes > r->bytes ? 15 : 0;         /* truncated */
    if (!r->code && bytes)
        memcpy(r->data, data, (size_t)bytes);
    __atomic_store_n(&r->done, 1, __ATOMIC_RELEASE);
}

int fake_long_sends(fake_world *w, int rank, int tags[FAKE_NOTED])
{
    pthread_mutex_lock(&w->lock);
    int count = w->members[rank].long_sends;
    memcpy(tags, w->members[rank].long_tags, sizeof w->members[rank].long_tags);
    pthread_mutex_unlock(&w->lock);
    return count;
}

static void take(letter *l, receive *r)
{
    fill(r, l->data, l->bytes);
    if (l->sender)
        __atomic_store_n(&l->sender->done, 1, __ATOMIC_RELEASE);
    free(l);
}

static int send(const void *data, int count, int peer, int tag, gtcb_handle comm, void *request, bool waits)
{
    member *me = (member *)comm, *to = &me->world->members[peer];
    receive *own = &sent;
    pthread_mutex_lock(&me->world->lock);
    if (count > NOTED_ABOVE && me->long_sends < FAKE_NOTED)
        me->long_tags[me->long_sends++] = tag;
    int code = me->code;
    receive **p = &to->posted;
    while (*p && !((*p)->from == me->rank && (*p)->tag == tag))
        p = &(*p)->next;
    if (code) {
    } else if (*p) {
        receive *matched = *p;
        *p = matched->next;
        fill(matched, data, count);
    } else {
        letter *l = malloc(sizeof *l + (size_t)count), **end = &to->box;
        if (waits)
            own = calloc(1, sizeof *own);
        *l = (letter){.sender = own == &sent ? NULL : own, .from = me->rank, .tag = tag, .bytes = count};
        memcpy(l->data, data, (size_t)count);
        while (*end)
            end = &(*end)->next;
        *end = l;
    }
    pthread_mutex_unlock(&me->world->lock);
    *(receive **)request = own;
    return code;
}

static int isend(const void *data, int count, gtcb_handle type, int peer, int tag, gtcb_handle comm, void *request)
{
    (void)type;
    return send(data, count, peer, tag, comm, request, count > EAGER);
}

static int issend(const void *data, int count, gtcb_handle type, int peer, int tag, gtcb_handle comm, void *request)
{
    (void)type;
    return send(data, count, peer, tag, comm, request, true);
}

static letter **find(member *me, int peer, int tag)
{
    letter **l = &me->box;
    while (*l && !((*l)->from == peer && (*l)->tag == tag))
        l = &(*l)->next;
    return l;
}

static int irecv(void *data, int count, gtcb_handle type, int peer, int tag, gtcb_handle comm, void *request)
{
    member *me = (member *)comm;
    (void)type;
    receive *r = malloc(sizeof *r);
    *r = (receive){.from = peer, .tag = tag, .bytes = count, .data = data};
    pthread_mutex_lock(&me->world->lock);
    int code = me->code;
    letter **l = find(me, peer, tag);
    if (code) {
        free(r);
        r = NULL;
    } else if (*l) {
        letter *taken = *l;
        *l = taken->next;
        take(taken, r);
    } else {
        receive **end = &me->posted;
        while (*end)
            end = &(*end)->next;
        *end = r;
    }
    pthread_mutex_unlock(&me->world->lock);
    *(receive **)request = r;
    return code;
}

static int test(void *request, int *flag, void *status)
{
    receive *r = *(receive **)request;
    memset(status, 7, 32);
    *flag = r == &sent || __atomic_load_n(&r->done, __ATOMIC_ACQUIRE);
    if (!*flag || r == &sent)
        return 0;
    int code = r->code;
    free(r);
    *(receive **)request = NULL;
    return code;
}

static int iprobe(int peer, int tag, gtcb_handle comm, int *flag, void *status)
{
    member *me = (member *)comm;
    memset(status, 7, 32);
    pthread_mutex_lock(&me->world->lock);
    *flag = *find(me, peer, tag) != NULL;
    int code = me->code;
    pthread_mutex_unlock(&me->world->lock);
    return code;
}

static int comm_size(gtcb_handle comm, int *size) { *size = ((member *)comm)->world->size; return 0; }
static int comm_rank(gtcb_handle comm, int *rank) { *rank = ((member *)comm)->rank; return 0; }
static int version(char *text, int *length) { *length = sprintf(text, "fake MPI") + 1; return 0; }
static int error(int code, char *text, int *length) { *length = sprintf(text, "fake error %d", code); return 0; }

gtcb_mpi fake_table(void)
{
    gtcb_mpi table = {.isend = isend, .issend = issend, .irecv = irecv, .test = test, .iprobe = iprobe, .comm_size = comm_size, .comm_rank = comm_rank,
                      .get_library_version = version, .error_string = error, .byte = 1};
    return table;
}
