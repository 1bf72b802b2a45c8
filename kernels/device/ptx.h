/* ptx.h: every PTX instruction that the kernels use, as a function, by the architecture that brought it. */
#ifndef KLEIN_DEVICE_PTX_H
#define KLEIN_DEVICE_PTX_H

#include "ptx_peer.h"
#include "ptx_sm80.h"
#include "ptx_sm90.h"
#include "ptx_wgmma.h"

#endif
