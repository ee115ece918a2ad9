// The binding of csrc/cuda over the emulation, as a Python module: what gtcbmuf._core.cuda is where CUDA was built. And
// `fail`: a call of the CUDA runtime is to fail (runtime.h, fault).
#include "../../csrc/binding/arrays.cpp"
#include "../../csrc/binding/cuda.cpp"

extern "C" void emulation_fail(const char *call, long sound, int error);

NB_MODULE(emulated_cuda, m)
{
    bind_cuda(m);
    m.def("fail", [](const std::string &call, long sound, int error) { emulation_fail(call.c_str(), sound, error); });
}
