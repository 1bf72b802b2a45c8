/* device.h: the machine as a .cu file sees it, whichever compiler reads it: nvcc, or g++ for the soft GPU.
 *
 *   KERNEL(name, args_struct, threads, min_blocks) { ... args.member ... }
 *       an entry point that the host launches by name with one struct (args.h) and exactly `threads` threads, 1-D;
 *       min_blocks blocks are to fit on one multiprocessor (it bounds the registers).
 *   DEVICE                every other function; DEVICE_METHOD for members.
 *   SHARED(type, s);      `type &s` over the dynamic shared memory; the launcher passes sizeof(type). Alignment is alignof(type).
 *   shared<T>             member of such a struct that threads exchange data through by plain reads and writes.
 *   UNROLL                before a loop over register arrays: not unrolled means local memory.
 *   UNROLL_BY(n)          before another loop: n of its steps at a time.
 *
 * Dynamic shared memory starts out undefined (NaN in the soft GPU). Warp collectives are called by all 32 lanes. */
#ifndef KLEIN_DEVICE_DEVICE_H
#define KLEIN_DEVICE_DEVICE_H

#include "args.h"

struct alignas(16) u32x4 {
    uint32_t x, y, z, w;
};
struct alignas(16) f32x4 {
    float x, y, z, w;
};
struct alignas(8) f32x2 {
    float x, y;
};

#ifdef __CUDACC__

#define DEVICE        static __device__ __forceinline__
#define DEVICE_METHOD __device__ __forceinline__
#define KERNEL(kernel, args_struct, threads, min_blocks)                                                     \
    extern "C" __global__ void __launch_bounds__(threads, min_blocks)                                        \
        kernel(const __grid_constant__ args_struct args)
#define SHARED(type, name)                                                                                   \
    extern __shared__ __align__(1024) unsigned char klein_shared[];                                          \
    static_assert(alignof(type) <= 1024, "dynamic shared memory is 1024-aligned");                           \
    type &name = *reinterpret_cast<type *>(klein_shared)
#define UNROLL           _Pragma("unroll")
#define DO_PRAGMA(text)  _Pragma(#text)
#define UNROLL_BY(steps) DO_PRAGMA(unroll steps)
#define SITE             /* the soft GPU's last parameter of a primitive: the place of the call; PASS_SITE hands it on */
#define SITE_ONLY
#define PASS_SITE
template <class T>
using shared = T;

DEVICE int thread_index()
{
    return threadIdx.x;
}
DEVICE int block_x()
{
    return blockIdx.x;
}
DEVICE int block_y()
{
    return blockIdx.y;
}
DEVICE int block_z()
{
    return blockIdx.z;
}
DEVICE int grid_x()
{
    return gridDim.x;
}
DEVICE int grid_y()
{
    return gridDim.y;
}

#else

#include "../soft/emulate.h"

#include <math.h>
#include <string.h>

#define DEVICE static inline
#define DEVICE_METHOD
#define KERNEL(kernel, args_struct, threads, min_blocks)                                                     \
    static void kernel##_body(const args_struct &args);                                                      \
    static void kernel##_enter(const void *args)                                                             \
    {                                                                                                        \
        kernel##_body(*static_cast<const args_struct *>(args));                                              \
    }                                                                                                        \
    __attribute__((constructor)) static void kernel##_register()                                             \
    {                                                                                                        \
        static soft_kernel self = {                                                                          \
            #kernel, __FILE__,   kernel##_enter, sizeof(args_struct), alignof(args_struct),                  \
            threads, min_blocks, nullptr};                                                                   \
        soft_register(&self);                                                                                \
    }                                                                                                        \
    static void kernel##_body(const args_struct &args)
#define SHARED(type, name)                                                                                   \
    type &name = *static_cast<type *>(soft_dynamic_shared(sizeof(type), alignof(type), soft_site::here()))
#define UNROLL
#define UNROLL_BY(steps)
#define SITE      , soft_site site = soft_site::here()
#define SITE_ONLY soft_site site = soft_site::here()
#define PASS_SITE , site

DEVICE int thread_index()
{
    return (int)soft_here->thread;
}
DEVICE int block_x()
{
    return (int)soft_here->grid->block[0];
}
DEVICE int block_y()
{
    return (int)soft_here->grid->block[1];
}
DEVICE int block_z()
{
    return (int)soft_here->grid->block[2];
}
DEVICE int grid_x()
{
    return (int)soft_here->grid->grid[0];
}
DEVICE int grid_y()
{
    return (int)soft_here->grid->grid[1];
}

#endif

DEVICE int lane_index()
{
    return thread_index() & 31;
}
DEVICE int warp_index()
{
    return thread_index() >> 5;
}

/* e4m3 is no type of mma.sync there: nvcc makes such products of conversions and f16 products. */
#if defined __CUDA_ARCH__ && (__CUDA_ARCH__ == 900 || __CUDA_ARCH__ / 100 == 10)
#define E4M3_BY_F16 1
#else
#define E4M3_BY_F16 0
#endif

template <class T>
DEVICE constexpr T ceil_div(T a, T b)
{
    return (a + b - 1) / b;
}

#endif
