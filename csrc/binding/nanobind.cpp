// nanobind comes as sources, to be compiled into the extension; setup.py has its folder among the include folders.
#include <nb_combined.cpp>
