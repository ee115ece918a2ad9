# Source this: what one small machine needs that runs more MPI ranks than it has cores.
# Nothing here is for a cluster; there, leave the site's settings alone.

# The launcher of Open MPI refuses to run as root (containers, CI) unless told twice.
if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

# Open MPI 5: more ranks than cores, none of them bound to a core.
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
export PRTE_MCA_hwloc_default_binding_policy=none
# The same for Open MPI 4.
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none

# A waiting rank gives its core away: without this an allgather of 4 ranks on 2 cores is
# hundreds of times slower.
export OMPI_MCA_mpi_yield_when_idle=1
export MPIR_CVAR_ENABLE_HEAVY_YIELD=1 # MPICH

# Shared memory and loopback only: no search for network cards, so a start takes 0.4 s, not 1.4 s.
# (What is not wanted is named, because shared memory has another name in Open MPI 4.)
export OMPI_MCA_pml=ob1 OMPI_MCA_btl=^ofi,uct,openib,usnic OMPI_MCA_btl_tcp_if_include=lo

# One compute thread for each rank, unless the caller said otherwise.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
