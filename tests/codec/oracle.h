/* docs/message-format.md once more, written for the tests and unlike the codec: whole arrays, single bits, sums in
   float64 (rounding a sum of two float32 from float64 gives the float32 sum: 53 >= 2 * 24 + 2 bits). */
#ifndef ORACLE_H
#define ORACLE_H

#include "check.h"

/* The message for this job (the caller frees it); writes residual_out. */
uint8_t *oracle_encode(const gtcb_encode_job *job, size_t *bytes);
/* The message that sends these numbers, 2 * index + negative, increasing. */
uint8_t *oracle_message(const gtcb_encode_job *job, const uint64_t *numbers, uint64_t k, size_t *bytes);
/* dense[i] += q; the message is valid. */
void oracle_decode_add(const uint8_t *message, float *dense);
double oracle_gradient(const void *data, size_t i, gtcb_dtype dtype);

#endif
