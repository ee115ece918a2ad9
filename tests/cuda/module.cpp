// The binding of csrc/cuda over the emulation, as a Python module: what gtcbmuf._core.cuda is where CUDA was built.
#include "../../csrc/binding/arrays.cpp"
#include "../../csrc/binding/cuda.cpp"

NB_MODULE(emulated_cuda, m) { bind_cuda(m); }
