// Entry: from the boot loader or the firmware to Rust, with a stack, an address space and zeroed memory.
//
// The image is position-independent. Until the relocations below are applied, only PC-relative code runs; until the MMU
// is on, only code that accesses no memory but one page table.

.section .text.entry, "ax"

// The arm64 Linux `Image` header, with which a loader passes a device tree. Source:
// Documentation/arch/arm64/booting.rst of Linux.
.global baton_image
baton_image:
    b       baton_entry
    .long   0
    .quad   0                           // text_offset from a 2 MiB boundary
    .quad   baton_image_size            // with .bss: the loader must not use it
    .quad   0b1010                      // little-endian, 4 KiB pages, anywhere in memory
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

// In: x0 = device tree. MMU and caches off, EL2h, interrupts masked.
baton_entry:
    mov     x19, x0
    msr     tpidr_el2, xzr              // pCPU 0, until the index is known
    bl      baton_reset_hcr
    bl      baton_set_vectors
    adrp    x20, baton_image
    add     x20, x20, :lo12:baton_image

    // 1. The early address space, in blocks of 1 GiB: devices at the bottom, and the blocks of the image and of the
    //    device tree. Only its table is written while the caches are off, so no cache may hold a line of it: neither a
    //    dirty line that would be written back over it, nor a stale one that the MMU would read instead.
    adrp    x21, baton_early_table
    mov     x0, x21
    add     x1, x21, #4096
    bl      baton_discard
    dsb     sy
    mov     x0, x21
    add     x1, x21, #4096
1:  stp     xzr, xzr, [x0], #16
    stp     xzr, xzr, [x0], #16
    stp     xzr, xzr, [x0], #16
    stp     xzr, xzr, [x0], #16
    cmp     x0, x1
    b.lo    1b
    ldr     x0, ={EARLY_DEVICE}
    str     x0, [x21]
    mov     x0, x20
    bl      baton_map_early
    mov     x0, x19
    bl      baton_map_early
    add     x0, x19, #2 << 20           // a device tree may end in the next block
    bl      baton_map_early
    dmb     sy                          // the stores are in memory before their lines are discarded
    mov     x0, x21
    add     x1, x21, #4096
    bl      baton_discard
    mov     x0, x21
    bl      baton_mmu_on

    // 2. Relocate. .relr.dyn has words. An even word is the offset of a word to which the image's address is added. An
    //    odd word is a bit map of the 63 words after the last one; bit 1 is the next word.
    adrp    x0, __relr_start
    add     x0, x0, :lo12:__relr_start
    adrp    x1, __relr_end
    add     x1, x1, :lo12:__relr_end
1:  cmp     x0, x1
    b.hs    5f
    ldr     x2, [x0], #8
    tbnz    x2, #0, 2f
    add     x3, x20, x2                 // where
    ldr     x4, [x3]
    add     x4, x4, x20
    str     x4, [x3], #8
    b       1b
2:  mov     x5, x3
    add     x3, x3, #63 * 8
3:  lsr     x2, x2, #1
    cbz     x2, 1b
    tbz     x2, #0, 4f
    ldr     x4, [x5]
    add     x4, x4, x20
    str     x4, [x5]
4:  add     x5, x5, #8
    b       3b

    // 3. Zero .bss; set the boot pCPU's stack; enter Rust.
5:  adrp    x0, __bss_start
    add     x0, x0, :lo12:__bss_start
    mov     w1, wzr
    adrp    x2, __bss_end
    add     x2, x2, :lo12:__bss_end
    sub     x2, x2, x0
    bl      baton_fill
    adrp    x0, baton_stacks
    add     x0, x0, :lo12:baton_stacks
    mov     x1, #{STACK_STRIDE}
    add     sp, x0, x1
    mov     x0, x19
    b       baton_main

// Maps the 1 GiB block of the address x0 as memory, unless it is that of the devices. x21 = the table.
baton_map_early:
    ubfx    x1, x0, #30, #9
    cbz     x1, 1f
    lsl     x2, x1, #30
    ldr     x3, ={EARLY_NORMAL}
    orr     x2, x2, x3
    str     x2, [x21, x1, lsl #3]
1:  ret

// The entry point of every further pCPU, from the firmware. In: x0 = its index, and in bits 8 and up the index of its
// stack. x1 and up unknown; MMU off, EL2h, interrupts masked.
.global baton_secondary_entry
baton_secondary_entry:
    and     x19, x0, #0xff
    msr     tpidr_el2, x19
    lsr     x0, x0, #8
    adrp    x1, baton_stacks
    add     x1, x1, :lo12:baton_stacks
    mov     x2, #{STACK_STRIDE}
    madd    x1, x0, x2, x1
    add     sp, x1, x2
    bl      baton_reset_hcr
    bl      baton_set_vectors
    // Written by the boot pCPU and cleaned to memory before this one was started.
    adrp    x0, baton_ttbr
    ldr     x0, [x0, :lo12:baton_ttbr]
    bl      baton_mmu_on
    mov     x0, x19
    b       baton_secondary_main

// HCR_EL2 is unknown at reset: no VHE, EL1 is AArch64, no traps yet.
baton_reset_hcr:
    mov     x9, #1 << 31
    msr     hcr_el2, x9
    isb
    ret

baton_set_vectors:
    adrp    x9, baton_vectors
    add     x9, x9, :lo12:baton_vectors
    msr     vbar_el2, x9
    isb
    ret

// Turns the MMU on, or changes the address space of a pCPU whose MMU is on. The MMU is off in between, so two
// translations of one address are never live together (break-before-make). In: x0 = TTBR0_EL2. Accesses no memory but
// its own code.
.global baton_mmu_on
baton_mmu_on:
    mrs     x9, sctlr_el2
    mov     x10, #{SCTLR_M_C}
    bic     x9, x9, x10
    dsb     sy
    msr     sctlr_el2, x9
    isb
    ldr     x10, ={MAIR}
    msr     mair_el2, x10
    ldr     x10, ={TCR}
    mrs     x11, id_aa64mmfr0_el1       // the output size that the hardware has
    and     x11, x11, #0x7
    bfi     x10, x11, #16, #3
    msr     tcr_el2, x10
    msr     ttbr0_el2, x0
    isb
    tlbi    alle2
    ic      iallu
    dsb     nsh
    isb
    ldr     x9, ={SCTLR}
    msr     sctlr_el2, x9
    isb
    ret
.ltorg
