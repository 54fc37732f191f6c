// Entering a guest, and coming back: a function call as far as Rust is concerned.
//
//   extern "C" fn baton_enter(regs: *mut Regs) -> u64    returns which vector brought it back (see `vectors.S`)
//
// While the guest runs, this pCPU's stack holds, from the stack pointer up: regs, padding, then the callee-saved
// registers of EL2. So an exit finds its registers without any per-CPU pointer.

.section .text.switch, "ax"

.global baton_enter
.balign 64
baton_enter:
    stp     x29, x30, [sp, #-96]!
    stp     x27, x28, [sp, #16]
    stp     x25, x26, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x21, x22, [sp, #64]
    stp     x19, x20, [sp, #80]
    stp     x0, xzr, [sp, #-16]!

    ldp     x1, x2, [x0, #{PC}]         // pc, pstate
    ldr     x3, [x0, #{HCR}]
    msr     elr_el2, x1
    msr     spsr_el2, x2
    msr     hcr_el2, x3

    ldp     x30, xzr, [x0, #{X} + 8 * 30]
    ldp     x28, x29, [x0, #{X} + 8 * 28]
    ldp     x26, x27, [x0, #{X} + 8 * 26]
    ldp     x24, x25, [x0, #{X} + 8 * 24]
    ldp     x22, x23, [x0, #{X} + 8 * 22]
    ldp     x20, x21, [x0, #{X} + 8 * 20]
    ldp     x18, x19, [x0, #{X} + 8 * 18]
    ldp     x16, x17, [x0, #{X} + 8 * 16]
    ldp     x14, x15, [x0, #{X} + 8 * 14]
    ldp     x12, x13, [x0, #{X} + 8 * 12]
    ldp     x10, x11, [x0, #{X} + 8 * 10]
    ldp     x8, x9, [x0, #{X} + 8 * 8]
    ldp     x6, x7, [x0, #{X} + 8 * 6]
    ldp     x4, x5, [x0, #{X} + 8 * 4]
    ldp     x2, x3, [x0, #{X} + 8 * 2]
    ldp     x0, x1, [x0, #{X}]
    eret
    dsb     nsh                         // no speculation past the eret
    isb

// From the vectors of the lower EL. On the stack: the guest's x0 and x1, then `regs`. x0 = which vector.
// All other registers are the guest's.
.global baton_exit
.balign 64
baton_exit:
    ldr     x1, [sp, #16]               // regs
    stp     x2, x3, [x1, #{X} + 8 * 2]
    ldp     x2, x3, [sp], #16           // the guest's x0, x1
    stp     x2, x3, [x1, #{X}]
    stp     x4, x5, [x1, #{X} + 8 * 4]
    stp     x6, x7, [x1, #{X} + 8 * 6]
    stp     x8, x9, [x1, #{X} + 8 * 8]
    stp     x10, x11, [x1, #{X} + 8 * 10]
    stp     x12, x13, [x1, #{X} + 8 * 12]
    stp     x14, x15, [x1, #{X} + 8 * 14]
    stp     x16, x17, [x1, #{X} + 8 * 16]
    stp     x18, x19, [x1, #{X} + 8 * 18]
    stp     x20, x21, [x1, #{X} + 8 * 20]
    stp     x22, x23, [x1, #{X} + 8 * 22]
    stp     x24, x25, [x1, #{X} + 8 * 24]
    stp     x26, x27, [x1, #{X} + 8 * 26]
    stp     x28, x29, [x1, #{X} + 8 * 28]
    str     x30, [x1, #{X} + 8 * 30]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x1, #{PC}]

    add     sp, sp, #16                 // regs, padding
    ldp     x19, x20, [sp, #80]
    ldp     x21, x22, [sp, #64]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #32]
    ldp     x27, x28, [sp, #16]
    ldp     x29, x30, [sp], #96
    ret
