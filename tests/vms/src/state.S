// Leaving the VM with known general registers, and keeping what comes back.
//
// In: x0 = a General block (state.rs). The block's address and the caller's registers wait on the stack, that is in
// memory: whatever the exit does to the registers, the code behind it finds its way as long as SP is right.

.macro checked_exit name, instruction:vararg
.global \name
\name:
    sub     sp, sp, #128
    stp     x0, x18, [sp]
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    stp     x29, x30, [sp, #96]
    mov     x1, sp
    str     x1, [x0, #512]
    ldr     x1, [x0, #248]
    msr     nzcv, x1
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x8, x9, [x0, #64]
    ldp     x10, x11, [x0, #80]
    ldp     x12, x13, [x0, #96]
    ldp     x14, x15, [x0, #112]
    ldp     x16, x17, [x0, #128]
    ldp     x18, x19, [x0, #144]
    ldp     x20, x21, [x0, #160]
    ldp     x22, x23, [x0, #176]
    ldp     x24, x25, [x0, #192]
    ldp     x26, x27, [x0, #208]
    ldp     x28, x29, [x0, #224]
    ldr     x30, [x0, #240]
    ldp     x0, x1, [x0]
    \instruction
    stp     x0, x1, [sp, #112]
    ldr     x0, [sp]
    stp     x2, x3, [x0, #272]
    stp     x4, x5, [x0, #288]
    stp     x6, x7, [x0, #304]
    stp     x8, x9, [x0, #320]
    stp     x10, x11, [x0, #336]
    stp     x12, x13, [x0, #352]
    stp     x14, x15, [x0, #368]
    stp     x16, x17, [x0, #384]
    stp     x18, x19, [x0, #400]
    stp     x20, x21, [x0, #416]
    stp     x22, x23, [x0, #432]
    stp     x24, x25, [x0, #448]
    stp     x26, x27, [x0, #464]
    stp     x28, x29, [x0, #480]
    mrs     x1, nzcv
    stp     x30, x1, [x0, #496]
    mov     x1, sp
    str     x1, [x0, #520]
    ldp     x2, x3, [sp, #112]
    stp     x2, x3, [x0, #256]
    ldr     x18, [sp, #8]
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp, #96]
    add     sp, sp, #128
    ret
.endm

.section .text.state, "ax"
checked_exit vm_checked_hvc, hvc #0
checked_exit vm_checked_smc, smc #0
checked_exit vm_checked_wfi, wfi
