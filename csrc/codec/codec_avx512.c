#include "variant.h"
