// The exception vectors of EL2.
//
// From a lower EL in AArch64: a hypercall is served here, by the Rust function `baton_hypercall`; a call that is
// answered at once costs only the registers that this function uses. Every other exit goes to `baton_exit`, which
// returns from `baton_enter` with the exit code: a syndrome, an interrupt, a system error. From EL2: never expected;
// all registers are saved in a frame, and Rust prints them and powers the machine off. From a lower EL in AArch32: not
// possible, because HCR_EL2.RW is set.
//
// Source: Arm ARM, DDI 0487, section D1.4, exception vectors.

.section .text.vectors, "ax"

// Returns to a guest with the answer to its hypercall: x0, x1, and x18 and up are in place. x17 = regs. Zeroing by
// loads takes half the instructions of moves.
.macro answer
    ldp     x2, x3, [x17, #{ZERO}]
    ldp     x4, x5, [x17, #{ZERO}]
    ldp     x6, x7, [x17, #{ZERO}]
    ldp     x8, x9, [x17, #{ZERO}]
    ldp     x10, x11, [x17, #{ZERO}]
    ldp     x12, x13, [x17, #{ZERO}]
    ldp     x14, x15, [x17, #{ZERO}]
    ldp     x16, x17, [x17, #{ZERO}]
    eret
    dsb     nsh                         // no speculation past the eret
    isb
.endm

// The stack holds regs, and above it the vCPU and the dispatcher (`switch.S`).
.macro synchronous
.balign 0x80
    stp     x18, x30, [sp, #-16]!
    mrs     x18, esr_el2
    lsr     x30, x18, #26
    cmp     x30, #0x16                  // HVC in AArch64 state
    b.ne    baton_exit
    ldp     x4, x5, [sp, #32]           // vCPU, dispatcher
    bl      baton_hypercall             // x0 to x3 = arguments; returns a reply: x0 = value, x1 = kind; 0 = answered
    cbnz    x1, baton_exit_call
    ldr     x17, [sp, #16]              // regs
    ldp     x18, x30, [sp], #16
    answer
.endm

.macro asynchronous how
.balign 0x80
    stp     x18, x30, [sp, #-16]!
    mov     x18, #\how
    b       baton_exit
.endm

// The stack pointer may be invalid (the guard page below a stack), so the frame goes to a separate stack.
.macro from_el2 number
.balign 0x80
    msr     tpidr_el0, x0               // a guest's, but no guest runs after this
    mov     x0, #\number
    b       baton_el2_fault
.endm

// A system error that a secondary left pending, and that EL2 takes in `baton_take_system_error` alone: the instruction
// there is skipped with x0 = 1. Anywhere else it is EL2's own.
.macro system_error_from_el2
.balign 0x80
    msr     tpidrro_el0, x1             // the primary's or nobody's, and saved
    mrs     x1, elr_el2
    adr     x0, baton_system_error_window
    sub     x0, x1, x0
    cmp     x0, #8
    b.hi    1f
    adr     x1, baton_system_error_taken
    msr     elr_el2, x1
    mov     x0, #1
    eret
1:  mrs     x1, tpidrro_el0
    b       baton_el2_system_error
.endm

.balign 0x800
.global baton_vectors
baton_vectors:
    from_el2 0
    from_el2 1
    from_el2 2
    from_el2 3
    from_el2 4
    from_el2 5
    from_el2 6
    system_error_from_el2
    synchronous
    asynchronous {HOW_INTERRUPT}
    asynchronous {HOW_INTERRUPT}
    asynchronous {HOW_SYSTEM_ERROR}
    from_el2 12
    from_el2 13
    from_el2 14
    from_el2 15

// x0 is lost.
baton_el2_system_error:
    msr     tpidr_el0, xzr
    mov     x0, #7
    b       baton_el2_fault

// Takes the system error that is pending, if it still is. Returns 1 if it was taken, else 0. Clobbers x1.
.global baton_take_system_error
baton_take_system_error:
    mov     x0, xzr
baton_system_error_window:
    msr     daifclr, #4
    isb
baton_system_error_taken:
    msr     daifset, #4
    ret

// x0 = the vector, TPIDR_EL0 = the original x0. There is one emergency stack: pCPUs that fault together may corrupt
// each other's dump, but the first one powers the machine off.
baton_el2_fault:
    msr     tpidrro_el0, x1
    adrp    x1, baton_emergency_stack_top
    add     x1, x1, :lo12:baton_emergency_stack_top
    sub     x1, x1, #288
    stp     x2, x3, [x1, #16]
    stp     x4, x5, [x1, #32]
    stp     x6, x7, [x1, #48]
    stp     x8, x9, [x1, #64]
    stp     x10, x11, [x1, #80]
    stp     x12, x13, [x1, #96]
    stp     x14, x15, [x1, #112]
    stp     x16, x17, [x1, #128]
    stp     x18, x19, [x1, #144]
    stp     x20, x21, [x1, #160]
    stp     x22, x23, [x1, #176]
    stp     x24, x25, [x1, #192]
    stp     x26, x27, [x1, #208]
    stp     x28, x29, [x1, #224]
    mov     x2, sp
    stp     x30, x2, [x1, #240]
    mrs     x2, tpidr_el0
    mrs     x3, tpidrro_el0
    stp     x2, x3, [x1]
    mov     sp, x1
    // x0 = the vector, x1 = the frame: x0 to x30 and the stack pointer
    bl      baton_report_el2_fault
1:  wfi
    b       1b
