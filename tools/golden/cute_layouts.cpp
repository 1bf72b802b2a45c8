/* cute_layouts.cpp: what CuTe (CUTLASS) says about fragments, shared memory and descriptors of tensor core instructions, as the tables
 * of tests/golden/layouts/. Host code only; cute_layouts.py compiles and runs it. One argument: which table. */
#include <cute/tensor.hpp>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/copy_traits_sm90.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm89.hpp>
#include <cute/atom/mma_traits_sm90.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>

#include <cstdio>
#include <cstdlib>
#include <cstring>

using namespace cute;

static void need(bool condition, const char *what)
{
    if (condition) return;
    fprintf(stderr, "not as the table's form assumes: %s\n", what);
    exit(1);
}

/* at(thread, element) -> row + rows * column is a sum of what the thread and what the element contribute. */
template <class At>
static void fragment(const char *name, const char *operand, int rows, int threads, int elements, At at)
{
    for (int t = 0; t < threads; t++)
        for (int v = 0; v < elements; v++) need(at(t, v) == at(t, 0) + at(0, v) - at(0, 0), "a sum");
    need(at(0, 0) == 0, "thread 0 begins");
    printf("%s %s %d rows, %d threads, %d elements\n", name, operand, rows, threads, elements);
    for (int t = 0; t < threads; t++) printf("%d%c", at(t, 0), t + 1 < threads ? ' ' : '\n');
    for (int v = 0; v < elements; v++) printf("%d%c", at(0, v), v + 1 < elements ? ' ' : '\n');
}

template <class TV>
static void operand(const char *name, const char *which, int rows, TV layout)
{
    fragment(name, which, rows, size<0>(layout), size<1>(layout),
             [&](int t, int v) { return int(layout(t, v)); });
}

template <class Op>
static void fragments(const char *name, bool registers_only)
{
    using traits = MMA_Traits<Op>;
    using shape = typename traits::Shape_MNK;
    operand(name, "a", size<0>(shape{}), typename traits::ALayout{});
    if (!registers_only) operand(name, "b", size<1>(shape{}), typename traits::BLayout{});
    operand(name, "c", size<0>(shape{}), typename traits::CLayout{});
}

/* Copies of four 8x8 matrices of 16 bits between registers and the rows that threads have the addresses of. CuTe counts bits. */
template <class Registers, class Rows>
static void matrices(const char *name, Registers registers, Rows rows)
{
    for (int t = 0; t < 32; t++)
        need(int(rows(t, 0)) == 128 * t && int(rows(t, 127)) == 128 * t + 127, "a row per thread");
    fragment(name, "registers", 8, 32, 8, [&](int t, int v) { return int(registers(t, 16 * v)) / 16; });
}

/* Byte offsets of the 16-byte chunks of an operand [64 mn, k of one row of the pattern]: a line per row of memory. */
template <GMMA::Major major, class Type, class Atom>
static void shared_tile(const char *name, Atom atom)
{
    constexpr bool k_major = major == GMMA::Major::K;
    constexpr int line = k_major ? size<1>(Atom{}) : size<0>(Atom{}); /* elements of a row of memory */
    constexpr int lines = 64, per_chunk = 16 / sizeof(Type);
    /* MN-major: 128 mn, groups of 8 k first, then the next `line` of mn. */
    auto layout = [&] {
        if constexpr (k_major)
            return tile_to_shape(atom, Shape<Int<lines>, Int<line>>{});
        else
            return tile_to_shape(atom, Shape<_128, Int<lines>>{}, Step<_2, _1>{});
    }();
    int chunks = (k_major ? line : 128) / per_chunk;
    /* The descriptor of the first instruction. On the host its address is 0, after a complaint that cute_layouts.py drops. */
    alignas(1024) static Type memory[65536 / sizeof(Type)];
    auto tensor = make_tensor(make_smem_ptr(memory), layout);
    auto first = local_tile(tensor, make_shape(size<0>(layout), Int<32 / sizeof(Type)>{}), make_coord(0, 0));
    GmmaDescriptor d = SM90::GMMA::make_gmma_desc<major>(first);
    printf("%s %s %d bytes per element, %d lines, %d chunks, descriptor %d %d %d %d\n", name,
           k_major ? "k" : "mn", int(sizeof(Type)), lines, chunks, int(d.bitfield.leading_byte_offset_),
           int(d.bitfield.stride_byte_offset_), int(d.bitfield.base_offset_), int(d.bitfield.layout_type_));
    for (int r = 0; r < lines; r++)
        for (int c = 0; c < chunks; c++) {
            auto at = [&](int i) {
                int along = c * per_chunk + i;
                /* By address: the swizzle is the pointer's, on bytes, not the layout's. */
                const Type *p = k_major ? &tensor(r, along) : &tensor(along, r);
                return int((const char *)p - (const char *)memory);
            };
            for (int i = 0; i < per_chunk; i++)
                need(at(i) == at(0) + i * int(sizeof(Type)), "chunks of 16 bytes");
            printf("%d%c", at(0), c + 1 < chunks ? ' ' : '\n');
        }
}

int main(int argc, char **argv)
{
    const char *table = argc > 1 ? argv[1] : "";
    if (!strcmp(table, "fragments")) {
        fragments<SM80_16x8x16_F32BF16BF16F32_TN>("mma_m16n8k16_bf16", false);
        fragments<SM89_16x8x32_F32E4M3E4M3F32_TN>("mma_m16n8k32_e4m3", false);
        using load = Copy_Traits<SM75_U32x4_LDSM_N>;
        using load_trans = Copy_Traits<SM75_U16x8_LDSM_T>;
        using store = Copy_Traits<SM90_U32x4_STSM_N>;
        matrices("ldmatrix_x4", load::DstLayout{}, load::SrcLayout{});
        matrices("ldmatrix_x4_trans", load_trans::DstLayout{}, load_trans::SrcLayout{});
        matrices("stmatrix_x4", store::SrcLayout{}, store::DstLayout{});
        fragments<SM90_64x64x16_F32BF16BF16_RS<GMMA::Major::K, GMMA::Major::K>>("wgmma_m64n64k16_bf16", true);
        fragments<SM90_64x256x16_F32BF16BF16_RS<GMMA::Major::K, GMMA::Major::K>>("wgmma_m64n256k16_bf16",
                                                                                 true);
    } else if (!strcmp(table, "shared")) {
        shared_tile<GMMA::Major::K, bfloat16_t>("128", GMMA::Layout_K_SW128_Atom<bfloat16_t>{});
        shared_tile<GMMA::Major::K, bfloat16_t>("64", GMMA::Layout_K_SW64_Atom<bfloat16_t>{});
        shared_tile<GMMA::Major::K, bfloat16_t>("32", GMMA::Layout_K_SW32_Atom<bfloat16_t>{});
        shared_tile<GMMA::Major::K, float_e4m3_t>("128", GMMA::Layout_K_SW128_Atom<float_e4m3_t>{});
        shared_tile<GMMA::Major::K, float_e4m3_t>("64", GMMA::Layout_K_SW64_Atom<float_e4m3_t>{});
        shared_tile<GMMA::Major::K, float_e4m3_t>("32", GMMA::Layout_K_SW32_Atom<float_e4m3_t>{});
        shared_tile<GMMA::Major::MN, bfloat16_t>("128", GMMA::Layout_MN_SW128_Atom<bfloat16_t>{});
        shared_tile<GMMA::Major::MN, bfloat16_t>("64", GMMA::Layout_MN_SW64_Atom<bfloat16_t>{});
        shared_tile<GMMA::Major::MN, bfloat16_t>("32", GMMA::Layout_MN_SW32_Atom<bfloat16_t>{});
    } else {
        need(false, "one argument, fragments or shared");
    }
}
