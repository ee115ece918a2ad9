/* The table of MPI functions, from the library that mpi4py has loaded; and the proof that it is the same one. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "transport/transport.h"

static const struct { const char *name; size_t offset; } FUNCTIONS[] = {
    {"MPI_Isend", offsetof(gtcb_mpi, isend)},
    {"MPI_Issend", offsetof(gtcb_mpi, issend)},
    {"MPI_Irecv", offsetof(gtcb_mpi, irecv)},
    {"MPI_Test", offsetof(gtcb_mpi, test)},
    {"MPI_Iprobe", offsetof(gtcb_mpi, iprobe)},
    {"MPI_Comm_size", offsetof(gtcb_mpi, comm_size)},
    {"MPI_Comm_rank", offsetof(gtcb_mpi, comm_rank)},
    {"MPI_Get_library_version", offsetof(gtcb_mpi, get_library_version)},
    {"MPI_Error_string", offsetof(gtcb_mpi, error_string)},
};

gtcb_status gtcb_mpi_lookup(const char *path, gtcb_handle byte, gtcb_mpi *out, char *text, size_t text_bytes)
{
    /* RTLD_NOLOAD: never a second MPI beside the one in use. dlsym searches the object and what it depends on. */
    void *object = dlopen(path, RTLD_NOLOAD | RTLD_LAZY);
    if (!object) {
        snprintf(text, text_bytes, "mpi4py's %s is not loaded in this process", path);
        return GTCB_BAD_ARGUMENT;
    }
    memset(out, 0, sizeof *out);
    out->byte = byte;
    for (size_t i = 0; i < sizeof FUNCTIONS / sizeof *FUNCTIONS; i++) {
        void *function = dlsym(object, FUNCTIONS[i].name);
        if (!function) {
            snprintf(text, text_bytes, "the MPI library that %s uses has no %s", path, FUNCTIONS[i].name);
            dlclose(object);
            return GTCB_BAD_ARGUMENT;
        }
        memcpy((char *)out + FUNCTIONS[i].offset, &function, sizeof function);
    }
    dlclose(object);   /* counts down only: mpi4py keeps it loaded */
    return GTCB_OK;
}

/* MPICH has both questions. Its second one asks for one kind of GPU, of which CUDA is number 0, and looks at what runs, where
   the first looks at what was built. */
int gtcb_mpi_is_cuda_aware(const char *path)
{
    void *object = dlopen(path, RTLD_NOLOAD | RTLD_LAZY);
    if (!object)
        return -1;
    int (*for_gpu)(int, int *) = NULL, (*for_cuda)(void) = NULL, aware = 0, answer = -1;
    void *found = dlsym(object, "MPIX_GPU_query_support");
    memcpy(&for_gpu, &found, sizeof found);
    found = dlsym(object, "MPIX_Query_cuda_support");
    memcpy(&for_cuda, &found, sizeof found);
    if (for_gpu)
        answer = for_gpu(0, &aware) == 0 && aware;
    else if (for_cuda)
        answer = for_cuda() == 1;
    dlclose(object);
    return answer;
}

static size_t trimmed(const char *text, size_t length)
{
    while (length && (text[length - 1] == '\0' || text[length - 1] == ' ' || text[length - 1] == '\n'))
        length--;
    return length;
}

gtcb_status gtcb_mpi_self_test(const gtcb_mpi *mpi, gtcb_handle comm, int size, int rank, const char *version,
                               char *text, size_t text_bytes)
{
    char mine[GTCB_MPI_TEXT] = "";
    int length = 0, my_size = -1, my_rank = -1;
    mpi->get_library_version(mine, &length);
    size_t here = trimmed(mine, length > 0 ? (size_t)length : 0), there = trimmed(version, strlen(version));
    if (here != there || memcmp(mine, version, here) != 0) {
        snprintf(text, text_bytes, "the MPI functions found belong to\n  %.300s\nbut mpi4py uses\n  %.300s\n"
                 "Keep one MPI in the environment.", mine, version);
        return GTCB_MISMATCH;
    }
    int code = mpi->comm_size(comm, &my_size);
    if (!code)
        code = mpi->comm_rank(comm, &my_rank);
    if (code || my_size != size || my_rank != rank) {
        snprintf(text, text_bytes, "MPI says rank %d of %d (code %d) for a communicator in which mpi4py is rank %d of "
                 "%d: communicator handles do not pass from mpi4py to MPI on this platform.\nMPI: %.300s",
                 my_rank, my_size, code, rank, size, mine);
        return GTCB_MISMATCH;
    }
    return GTCB_OK;
}

void gtcb_mpi_error_text(const gtcb_mpi *mpi, int code, char *text, size_t text_bytes)
{
    char buffer[GTCB_MPI_TEXT] = "";
    int length = 0;
    if (mpi->error_string(code, buffer, &length))
        snprintf(buffer, sizeof buffer, "unknown error");
    snprintf(text, text_bytes, "MPI error %d: %.400s", code, buffer);
}
