/* Rounds: every pair meets once, nobody waits in a circle, and a host has one other to do with at a time. */
#include "exchange/internal.h"
#include "team.h"

enum { MOST = 12 };

/* Every rank does its rounds in order; one is over when what it sends and what it hears have found their other ends. */
static void run_out(gtcb_exchange *x, uint32_t size)
{
    uint32_t at[MOST] = {0};
    bool sent[MOST] = {0}, heard[MOST] = {0}, met[MOST][MOST] = {{0}};
    for (bool moved = true; moved;) {
        moved = false;
        for (uint32_t r = 0; r < size; r++) {
            if (at[r] == x[r].round_count)
                continue;
            const gtcb_round *round = &x[r].rounds[at[r]];
            const uint32_t to = round->to;
            sent[r] |= to == GTCB_NOBODY;
            heard[r] |= round->from == GTCB_NOBODY;
            if (!sent[r] && at[to] < x[to].round_count && x[to].rounds[at[to]].from == r && !heard[to]) {
                CHECK(to != r && !met[r][to]);
                met[r][to] = sent[r] = heard[to] = moved = true;
            }
            if (sent[r] && heard[r]) {
                at[r]++;
                sent[r] = heard[r] = false;
                moved = true;
            }
        }
    }
    for (uint32_t r = 0; r < size; r++) {
        CHECK(at[r] == x[r].round_count);
        for (uint32_t p = 0; p < size; p++)
            CHECK(met[r][p] == (p != r));
    }
}

/* Of hosts with as many ranks each: in round i all ranks of one send to ranks of the same one. */
static void check_hosts(const gtcb_exchange *x, uint32_t size, const uint32_t *hosts)
{
    for (uint32_t r = 0; r < size; r++)
        for (uint32_t p = 0; p < size; p++)
            for (uint32_t i = 0; i < x[r].round_count; i++)
                if (hosts[r] == hosts[p])
                    CHECK(hosts[x[r].rounds[i].to] == hosts[x[p].rounds[i].to] && hosts[x[r].rounds[i].from] == hosts[x[p].rounds[i].from]);
}

static void try(uint32_t size, const uint32_t *hosts, bool even)
{
    gtcb_exchange x[MOST];
    memset(x, 0, sizeof x);
    for (uint32_t r = 0; r < size; r++) {
        x[r].rank = r;
        x[r].size = size;
        CHECK(gtcb_ring_open(&x[r], hosts) == GTCB_OK && gtcb_rounds_open(&x[r], hosts) == GTCB_OK);
    }
    run_out(x, size);
    if (even)
        check_hosts(x, size, hosts);
    for (uint32_t r = 0; r < size; r++) {
        free(x[r].ring);
        free(x[r].rounds);
    }
}

void rounds(void)
{
    uint32_t hosts[MOST];
    unsigned seed = 1;
    for (uint32_t size = 1; size <= MOST; size++) {
        try(size, NULL, false);
        for (uint32_t groups = 1; groups <= size; groups++) {
            for (uint32_t r = 0; r < size; r++)         /* in turn, one host after the other, as chance will have it */
                hosts[r] = r % groups;
            try(size, hosts, size % groups == 0);
            for (uint32_t r = 0; r < size; r++)
                hosts[r] = 9 - r * groups / size;
            try(size, hosts, size % groups == 0);
            for (uint32_t r = 0; r < size; r++)
                hosts[r] = (uint32_t)rand_r(&seed) % groups;
            try(size, hosts, false);
        }
    }
    printf("rounds ok\n");
}
