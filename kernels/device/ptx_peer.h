/* ptx_peer.h: words in memory by which devices tell each other how far they are, as of sm_80. One PTX instruction = one function. */
#ifndef KLEIN_DEVICE_PTX_PEER_H
#define KLEIN_DEVICE_PTX_PEER_H

#include "ptx_sm80.h"

/* A word that another device or the host may have written; what came before that write is seen by what follows. */
DEVICE uint32_t ld_acquire_sys_4(const void *p SITE)
{
#ifdef __CUDACC__
    uint32_t r;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(r) : "l"(p) : "memory");
    return r;
#else
    return soft_load_acquire(p, site);
#endif
}

/* What this thread wrote, or has seen, before is seen by whoever reads the word by ld_acquire_sys_4. */
DEVICE void st_release_sys_4(void *p, uint32_t v SITE)
{
    PTX(asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v)
                     : "memory"),
        soft_store_release(p, v, site));
}

/* Orders what the thread did before with what it does later, for all devices. */
DEVICE void fence_sys()
{
    PTX(asm volatile("fence.acq_rel.sys;" ::: "memory"), __atomic_thread_fence(__ATOMIC_ACQ_REL));
}

/* Adds to a word of this device and returns what it was; acquires and releases among this device's threads. */
DEVICE uint32_t atom_add_gpu_4(void *p, uint32_t v SITE)
{
#ifdef __CUDACC__
    uint32_t r;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(r) : "l"(p), "r"(v) : "memory");
    return r;
#else
    return soft_atomic_add(p, v, site);
#endif
}

/* Some time passes. Between two looks at a word that another device writes. */
DEVICE void nanosleep(uint32_t ns SITE)
{
    PTX(asm volatile("nanosleep.u32 %0;" ::"r"(ns)), soft_sleep(site));
}

#endif
