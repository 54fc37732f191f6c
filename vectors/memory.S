// Memory functions: memcpy, memmove, memset and memcmp for compiled code, and cache maintenance. `arch/aarch64/mod.rs`
// gives them their C names, so that a test VM can link them beside its own.
//
// The FP registers are the guests', so a round moves 128 bytes by pairs of general registers. Accesses may be
// unaligned, and zeroing uses DC ZVA. Both need normal memory with the MMU on, which it is before the first Rust
// function.
//
// All of them follow the C calling convention, and change only x0 to x17.

.section .text.memory, "ax"

// void *baton_copy(void *to, const void *from, size_t size): memcpy, and memmove, whose areas may overlap.
//
// A piece of up to 64 bytes is loaded completely, from both of its ends, before any of it is stored, so the areas may
// overlap. A longer copy goes in rounds, in the direction in which no round overwrites bytes that are still to be read,
// until such a piece is left.
//
// x0 = to, returned; x1 = from; x2 = bytes left; x3 = to, moving.
.global baton_copy
.balign 64
baton_copy:
    mov     x3, x0
    cmp     x2, #64
    b.hi    .Lcopy_long
.Lcopy_piece:
    cmp     x2, #16
    b.lo    .Lcopy_0_to_15
    add     x4, x1, x2
    add     x5, x3, x2
    cmp     x2, #32
    b.hi    .Lcopy_33_to_64
    ldp     x6, x7, [x1]
    ldp     x8, x9, [x4, #-16]
    stp     x6, x7, [x3]
    stp     x8, x9, [x5, #-16]
    ret
.Lcopy_33_to_64:
    ldp     x6, x7, [x1]
    ldp     x8, x9, [x1, #16]
    ldp     x10, x11, [x4, #-32]
    ldp     x12, x13, [x4, #-16]
    stp     x6, x7, [x3]
    stp     x8, x9, [x3, #16]
    stp     x10, x11, [x5, #-32]
    stp     x12, x13, [x5, #-16]
    ret
.Lcopy_0_to_15:
    add     x4, x1, x2
    add     x5, x3, x2
    tbz     x2, #3, .Lcopy_0_to_7
    ldr     x6, [x1]
    ldr     x7, [x4, #-8]
    str     x6, [x3]
    str     x7, [x5, #-8]
    ret
.Lcopy_0_to_7:
    tbz     x2, #2, .Lcopy_0_to_3
    ldr     w6, [x1]
    ldr     w7, [x4, #-4]
    str     w6, [x3]
    str     w7, [x5, #-4]
    ret
.Lcopy_0_to_3:
    cbz     x2, .Lcopied
    lsr     x8, x2, #1                  // the first, the middle and the last byte
    ldrb    w6, [x1]
    ldrb    w7, [x1, x8]
    ldrb    w9, [x4, #-1]
    strb    w6, [x3]
    strb    w7, [x3, x8]
    strb    w9, [x5, #-1]
.Lcopied:
    ret

.Lcopy_long:
    sub     x4, x3, x1
    cmp     x4, x2
    b.lo    .Lcopy_downwards            // the target begins inside of the source
    subs    x2, x2, #128
    b.ls    .Lcopy_rest
.Lcopy_upwards:
    ldp     x4, x5, [x1], #128
    ldp     x6, x7, [x1, #-112]
    ldp     x8, x9, [x1, #-96]
    ldp     x10, x11, [x1, #-80]
    stp     x4, x5, [x3], #128
    stp     x6, x7, [x3, #-112]
    stp     x8, x9, [x3, #-96]
    stp     x10, x11, [x3, #-80]
    ldp     x4, x5, [x1, #-64]
    ldp     x6, x7, [x1, #-48]
    ldp     x8, x9, [x1, #-32]
    ldp     x10, x11, [x1, #-16]
    stp     x4, x5, [x3, #-64]
    stp     x6, x7, [x3, #-48]
    stp     x8, x9, [x3, #-32]
    stp     x10, x11, [x3, #-16]
    subs    x2, x2, #128
    b.hi    .Lcopy_upwards
.Lcopy_rest:                            // 1 to 128 bytes; x2 is 128 less than that
    adds    x2, x2, #64
    b.le    .Lcopy_last_piece
    ldp     x4, x5, [x1], #64
    ldp     x6, x7, [x1, #-48]
    ldp     x8, x9, [x1, #-32]
    ldp     x10, x11, [x1, #-16]
    stp     x4, x5, [x3], #64
    stp     x6, x7, [x3, #-48]
    stp     x8, x9, [x3, #-32]
    stp     x10, x11, [x3, #-16]
    b       .Lcopy_piece
.Lcopy_last_piece:
    add     x2, x2, #64
    b       .Lcopy_piece

.Lcopy_downwards:
    add     x4, x1, x2
    add     x5, x3, x2
    ldp     x6, x7, [x4, #-16]
    ldp     x8, x9, [x4, #-32]
    ldp     x10, x11, [x4, #-48]
    ldp     x12, x13, [x4, #-64]
    stp     x6, x7, [x5, #-16]
    stp     x8, x9, [x5, #-32]
    stp     x10, x11, [x5, #-48]
    stp     x12, x13, [x5, #-64]
    sub     x2, x2, #64
    cmp     x2, #64
    b.hi    .Lcopy_downwards
    b       .Lcopy_piece

// void *baton_fill(void *to, int byte, size_t size): memset.
//
// The first and the last 64 bytes are written unaligned, and may overlap; aligned rounds fill the bytes between.
//
// x0 = to, returned; x1 = the byte, eight times; x2 = size, then the end of the rounds; x3 = to, moving; x4 = the end.
.global baton_fill
.balign 64
baton_fill:
    and     x1, x1, #0xff
    mov     x3, #0x0101010101010101
    mul     x1, x1, x3
    add     x4, x0, x2
    cmp     x2, #16
    b.lo    .Lset_0_to_15
    stp     x1, x1, [x0]
    stp     x1, x1, [x4, #-16]
    cmp     x2, #32
    b.ls    .Lset
    stp     x1, x1, [x0, #16]
    stp     x1, x1, [x4, #-32]
    cmp     x2, #64
    b.ls    .Lset
    stp     x1, x1, [x0, #32]
    stp     x1, x1, [x0, #48]
    stp     x1, x1, [x4, #-48]
    stp     x1, x1, [x4, #-64]
    add     x3, x0, #64
    and     x3, x3, #-64
    cbnz    x1, .Lset_lines
    mrs     x5, dczid_el0
    tbnz    x5, #4, .Lset_lines         // DC ZVA is prohibited
    and     x5, x5, #0xf
    mov     x6, #4
    lsl     x5, x6, x5                  // bytes that it zeroes at a time
    cmp     x2, x5, lsl #3
    b.hs    .Lzero
.Lset_lines:
    sub     x2, x4, #64
    cmp     x3, x2
    b.hs    .Lset
1:  stp     x1, x1, [x3]
    stp     x1, x1, [x3, #16]
    stp     x1, x1, [x3, #32]
    stp     x1, x1, [x3, #48]
    add     x3, x3, #64
    cmp     x3, x2
    b.lo    1b
.Lset:
    ret

.Lset_0_to_15:
    tbz     x2, #3, 1f
    str     x1, [x0]
    str     x1, [x4, #-8]
    ret
1:  tbz     x2, #2, 1f
    str     w1, [x0]
    str     w1, [x4, #-4]
    ret
1:  cbz     x2, .Lset
    strb    w1, [x0]
    strb    w1, [x4, #-1]
    lsr     x2, x2, #1
    strb    w1, [x0, x2]
    ret

// x3 = to, a multiple of 64; x5 = bytes that DC ZVA zeroes; at least 8 times as many are left.
.Lzero:
    sub     x6, x5, #1
1:  tst     x3, x6                      // lines, up to the first aligned block
    b.eq    2f
    stp     x1, x1, [x3]
    stp     x1, x1, [x3, #16]
    stp     x1, x1, [x3, #32]
    stp     x1, x1, [x3, #48]
    add     x3, x3, #64
    b       1b
2:  sub     x2, x4, x5, lsl #2
3:  dc      zva, x3                     // four at a time
    add     x3, x3, x5
    dc      zva, x3
    add     x3, x3, x5
    dc      zva, x3
    add     x3, x3, x5
    dc      zva, x3
    add     x3, x3, x5
    cmp     x3, x2
    b.ls    3b
    sub     x2, x4, x5
4:  cmp     x3, x2                      // one at a time
    b.hi    .Lset_lines
    dc      zva, x3
    add     x3, x3, x5
    b       4b

// int baton_compare(const void *a, const void *b, size_t size): memcmp, and bcmp, which needs less.
//
// Eight bytes at a time while they are equal; in the first eight that differ, the first byte decides; the rest byte by
// byte.
.global baton_compare
.balign 64
baton_compare:
    subs    x2, x2, #8
    b.lo    2f
1:  ldr     x3, [x0], #8
    ldr     x4, [x1], #8
    cmp     x3, x4
    b.ne    3f
    subs    x2, x2, #8
    b.hs    1b
2:  adds    x2, x2, #8
    b.eq    .Lequal
4:  ldrb    w3, [x0], #1
    ldrb    w4, [x1], #1
    subs    w3, w3, w4
    b.ne    .Ldiffer
    subs    x2, x2, #1
    b.ne    4b
.Lequal:
    mov     w0, #0
    ret
3:  rev     x3, x3                      // the first byte that differs decides
    rev     x4, x4
    cmp     x3, x4
    cset    w3, hi
    csinv   w3, w3, wzr, hs
.Ldiffer:
    mov     w0, w3
    ret

// Cache maintenance by lines, to the point of coherency. In: x0 = start, x1 = end. Barriers are the caller's.
.macro by_lines operation
    mrs     x2, ctr_el0
    ubfx    x2, x2, #16, #4
    mov     x3, #4
    lsl     x2, x3, x2                  // bytes in the shortest line of any data cache
    sub     x3, x2, #1
    bic     x0, x0, x3
    sub     x3, x1, x2, lsl #2
    b       2f
1:  dc      \operation, x0              // four at a time
    add     x0, x0, x2
    dc      \operation, x0
    add     x0, x0, x2
    dc      \operation, x0
    add     x0, x0, x2
    dc      \operation, x0
    add     x0, x0, x2
2:  cmp     x0, x3
    b.ls    1b
3:  cmp     x0, x1                      // one at a time
    b.hs    4f
    dc      \operation, x0
    add     x0, x0, x2
    b       3b
4:  ret
.endm

// Cleans and invalidates.
.global baton_clean
.balign 64
baton_clean:
    by_lines civac

// Invalidates without cleaning: the cached contents are lost.
.global baton_discard
.balign 64
baton_discard:
    by_lines ivac
