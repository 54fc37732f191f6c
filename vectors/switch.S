// Guest entry and exit: to Rust a function call that preserves only x19, x29 and the stack pointer (see `Cpu::enter`).
//
//   baton_enter(x0 = regs.x, x1 = vCPU, x2 = dispatcher, x3 = HCR_EL2) -> x18 = exit code; if the exit is a hypercall,
//   x0 and x1 = its reply
//
// While the guest runs, this pCPU's stack holds, from the stack pointer up: regs, the return address; vCPU, dispatcher;
// x19, x29. So an exit finds regs without a per-CPU pointer. A vector pushes x18 and x30 below that.

.section .text.switch, "ax"

.global baton_enter
.balign 64
baton_enter:
    stp     x0, x30, [sp, #-48]!
    stp     x1, x2, [sp, #16]
    stp     x19, x29, [sp, #32]

    msr     hcr_el2, x3
    ldp     x3, x4, [x0, #{PC}]         // pc, pstate
    msr     elr_el2, x3
    msr     spsr_el2, x4
    ldp     x30, x5, [x0, #8 * 30]
    ldp     x28, x29, [x0, #8 * 28]
    ldp     x26, x27, [x0, #8 * 26]
    ldp     x24, x25, [x0, #8 * 24]
    ldp     x22, x23, [x0, #8 * 22]
    ldp     x20, x21, [x0, #8 * 20]
    ldp     x18, x19, [x0, #8 * 18]
    cbnz    x5, 1f                      // the guest returns from a hypercall
    ldp     x16, x17, [x0, #8 * 16]
    ldp     x14, x15, [x0, #8 * 14]
    ldp     x12, x13, [x0, #8 * 12]
    ldp     x10, x11, [x0, #8 * 10]
    ldp     x8, x9, [x0, #8 * 8]
    ldp     x6, x7, [x0, #8 * 6]
    ldp     x4, x5, [x0, #8 * 4]
    ldp     x2, x3, [x0, #8 * 2]
    ldp     x0, x1, [x0]
    eret
    dsb     nsh                         // no speculation past the eret
    isb

1:  mov     x17, x0
    ldr     x0, [x17]
    mov     x1, xzr
    answer

// The end of an exit. x18 = exit code, x0 and x1 = the reply, x30 = regs, in which the guest's general registers are
// saved.
.macro leave
    mrs     x3, elr_el2
    mrs     x4, spsr_el2
    stp     x3, x4, [x30, #{PC}]
    ldp     x19, x29, [sp, #32]
    ldr     x30, [sp, #8]
    add     sp, sp, #48
    ret
.endm

// Exit by a hypercall that is not answered at once; the vector pushed x18 and x30. x0 and x1 = the reply; x1 is not 0.
// The guest's result is 0, or is written when its completion is ready.
.global baton_exit_call
.balign 64
baton_exit_call:
    // The answer overwrites x0 to x17, so they are not saved; `returns`, after x30, gets x1, which is not 0.
    ldr     x30, [sp, #16]              // regs
    ldp     x2, x3, [sp], #16           // the guest's x18 and x30
    str     xzr, [x30]
    stp     x2, x19, [x30, #8 * 18]
    stp     x20, x21, [x30, #8 * 20]
    stp     x22, x23, [x30, #8 * 22]
    stp     x24, x25, [x30, #8 * 24]
    stp     x26, x27, [x30, #8 * 26]
    stp     x28, x29, [x30, #8 * 28]
    stp     x3, x1, [x30, #8 * 30]
    mov     x18, #{HOW_CALL}
    leave

// Any other exit; the vector pushed x18 and x30. x18 = exit code. All other general registers are the guest's. Clears
// `returns`.
.global baton_exit
.balign 64
baton_exit:
    ldr     x30, [sp, #16]              // regs
    stp     x0, x1, [x30]
    stp     x2, x3, [x30, #8 * 2]
    stp     x4, x5, [x30, #8 * 4]
    stp     x6, x7, [x30, #8 * 6]
    stp     x8, x9, [x30, #8 * 8]
    stp     x10, x11, [x30, #8 * 10]
    stp     x12, x13, [x30, #8 * 12]
    stp     x14, x15, [x30, #8 * 14]
    stp     x16, x17, [x30, #8 * 16]
    ldp     x0, x1, [sp], #16           // the guest's x18 and x30
    stp     x0, x19, [x30, #8 * 18]
    stp     x20, x21, [x30, #8 * 20]
    stp     x22, x23, [x30, #8 * 22]
    stp     x24, x25, [x30, #8 * 24]
    stp     x26, x27, [x30, #8 * 26]
    stp     x28, x29, [x30, #8 * 28]
    stp     x1, xzr, [x30, #8 * 30]
    leave
