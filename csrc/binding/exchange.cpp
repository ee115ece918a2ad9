#include "binding/binding.h"
void bind_exchange(nb::module_ &) {}
