/* Each operation of the codec once, between requests to callgrind: one dump of counts for each, named by its label.
   Prints for each label how many units (elements, sent elements) it was. scripts/benchmarks/counts.py runs it:
     valgrind --tool=callgrind --instr-atstart=no count_instructions                                            */
#include <valgrind/callgrind.h>

#include "check.h"

enum { ELEMENTS = 1 << 21, MESSAGES = 8 };

static float gradient[ELEMENTS], residual[ELEMENTS], dense[ELEMENTS];
static uint8_t *messages[MESSAGES];
static uint32_t *scratch;

static void fill(double density, uint64_t seed)
{
    for (size_t i = 0; i < ELEMENTS; i++) {
        double sign = random64(&seed) & 1 ? 1.0 : -1.0;
        gradient[i] = (float)(sign * (uniform(&seed) < density ? 0.6 : 0.3));
        residual[i] = (float)(sign * 0.1);
    }
}

static void encode(const gtcb_variant *v, uint8_t *message, size_t *bytes)
{
    gtcb_segment all = {gradient, ELEMENTS};
    gtcb_encode_job job = {.segments = &all, .segment_count = 1, .dtype = GTCB_F32, .elements = ELEMENTS,
                           .residual_in = residual, .residual_out = residual, .threshold = 0.5f,
                           .max_sent = GTCB_NO_CAP, .scratch = scratch};
    CHECK(gtcb_encode(v, &job, NULL, message, gtcb_message_capacity(ELEMENTS), bytes) == GTCB_OK, "encode");
}

static void begin(void)
{
    CALLGRIND_START_INSTRUMENTATION;
    CALLGRIND_ZERO_STATS;
}

static void end(const char *operation, const gtcb_variant *v, double density, uint64_t units)
{
    char label[100];
    CALLGRIND_STOP_INSTRUMENTATION;
    snprintf(label, sizeof label, "%s, %s, %g %%", operation, gtcb_variant_name(v), 100 * density);
    CALLGRIND_DUMP_STATS_AT(label);
    printf("%s\t%" PRIu64 "\n", label, units);
}

static void count(const gtcb_variant *v, double density)
{
    gtcb_message list[MESSAGES];
    gtcb_header h;
    uint64_t sent = 0;
    size_t bytes = 0;
    for (size_t i = 1; i < MESSAGES; i++) {
        fill(density, i);
        encode(v, messages[i], &bytes);
        list[i] = (gtcb_message){messages[i], messages[i] + GTCB_HEADER_BYTES};
        gtcb_read_header(messages[i], &h);
        sent += h.sent;
    }
    fill(density, 0);
    begin();
    encode(v, messages[0], &bytes);
    end("encode", v, density, ELEMENTS);
    list[0] = (gtcb_message){messages[0], messages[0] + GTCB_HEADER_BYTES};
    gtcb_read_header(messages[0], &h);
    sent += h.sent;
    begin();
    gtcb_status status = gtcb_validate(v, messages[0], list[0].body, bytes - GTCB_HEADER_BYTES);
    end("validate", v, density, h.sent);
    CHECK(status == GTCB_OK, "valid");
    begin();
    gtcb_decode_add(v, list, 1, dense, ELEMENTS, NULL);
    end("decode_add of 1", v, density, h.sent);
    begin();
    gtcb_decode_add(v, list, MESSAGES, dense, ELEMENTS, NULL);
    end("decode_add of 8", v, density, sent);
}

int main(void)
{
    static const double densities[] = {0.001, 0.01, 0.1};
    scratch = must(malloc(gtcb_scratch_words(ELEMENTS) * 4));
    for (size_t i = 0; i < MESSAGES; i++)
        messages[i] = must(malloc(gtcb_message_capacity(ELEMENTS)));
    for (size_t i = 0; i < gtcb_variant_count(); i++)
        for (size_t d = 0; d < 3 && gtcb_variant_supported(gtcb_variant_at(i)); d++)
            count(gtcb_variant_at(i), densities[d]);
    return 0;
}
