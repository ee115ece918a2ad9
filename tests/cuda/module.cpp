// The binding of csrc/cuda over the emulation, as a Python module: what gtcbmuf._core.cuda is where CUDA was built. And what
// tests tell the emulated runtime (runtime.h): `fail`, a call is to fail; `emulate_devices`, how many there are.
#include "../../csrc/binding/arrays.cpp"
#include "../../csrc/binding/cuda.cpp"

extern "C" void emulation_fail(const char *call, long sound, int error);
extern "C" void emulation_devices(int count);
extern "C" int emulation_devices_set_beside();

NB_MODULE(emulated_cuda, m)
{
    bind_cuda(m);
    m.def("emulate_devices", emulation_devices);
    m.def("devices_set_beside_the_main_thread", emulation_devices_set_beside);
    m.def("fail", [](const std::string &call, long sound, int error) { emulation_fail(call.c_str(), sound, error); });
}
