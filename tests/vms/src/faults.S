// Runs one instruction at EL0 or EL1, and records the exception that it takes (faults.rs).

// x0 = address of the instruction, x1 = its PSTATE as SPSR_EL1, x2 = its x0, x3 = the record. Returns when it has faulted.
.section .text.faults, "ax"
.global faults_run
faults_run:
    stp     x19, x20, [sp, #-112]!
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x26, [sp, #48]
    stp     x27, x28, [sp, #64]
    stp     x29, x30, [sp, #80]
    mrs     x4, vbar_el1
    stp     x3, x4, [sp, #96]
    adrp    x4, faults_vectors
    add     x4, x4, :lo12:faults_vectors
    msr     vbar_el1, x4
    msr     elr_el1, x0
    msr     spsr_el1, x1
    isb
    mov     x0, x2
    eret

.macro taken number
    .balign 0x80
    mov     x1, #\number
    b       faults_taken
.endm

.balign 0x800
faults_vectors:
    .irp number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    taken \number
    .endr

// x1 = number of the vector; SP_EL1 is as `faults_run` left it. No flag changes until PSTATE is recorded. The record:
// `Record` of
// faults.rs.
faults_taken:
    ldp     x3, x4, [sp, #96]
    str     x1, [x3, #8]
    mrs     x1, esr_el1
    mrs     x2, far_el1
    stp     x1, x2, [x3, #16]
    mrs     x1, elr_el1
    mrs     x2, spsr_el1
    stp     x1, x2, [x3, #32]
    mrs     x1, nzcv
    mrs     x2, daif
    orr     x1, x1, x2
    mrs     x2, CurrentEL
    orr     x1, x1, x2
    mrs     x2, spsel
    orr     x1, x1, x2
    ldr     x5, [x3]
    tbz     x5, #0, 1f
    mrs     x2, s3_0_c4_c2_3                // PAN
    orr     x1, x1, x2
1:  tbz     x5, #1, 1f
    mrs     x2, s3_0_c4_c2_4                // UAO
    orr     x1, x1, x2
1:  tbz     x5, #2, 1f
    mrs     x2, s3_3_c4_c2_5                // DIT
    orr     x1, x1, x2
1:  tbz     x5, #3, 1f
    mrs     x2, s3_3_c4_c2_6                // SSBS
    orr     x1, x1, x2
1:  tbz     x5, #4, 1f
    mrs     x2, s3_3_c4_c2_7                // TCO
    orr     x1, x1, x2
1:  str     x1, [x3, #48]
    msr     vbar_el1, x4
    isb
    ldp     x29, x30, [sp, #80]
    ldp     x27, x28, [sp, #64]
    ldp     x25, x26, [sp, #48]
    ldp     x23, x24, [sp, #32]
    ldp     x21, x22, [sp, #16]
    ldp     x19, x20, [sp], #112
    ret

// The instructions, 8 bytes for each; what does not fault meets an undefined one.
.balign 8
.global faults_code
.global faults_code_end
faults_code:
    .inst   0xf9400001, 0                   // ldr x1, [x0]
    .inst   0xf9000001, 0                   // str x1, [x0]
    at      s1e1r, x0
    udf     #0
    at      s1e1w, x0
    udf     #0
    dc      civac, x0
    udf     #0
    dc      zva, x0
    udf     #0
    .inst   0x04bf5020, 0                   // rdvl x0, #1, of SVE
    .inst   0xe5901000, 0xe7f000f0          // A32: ldr r1, [r0]
    .inst   0xe5801000, 0xe7f000f0          // A32: str r1, [r0]
    .inst   0xde006801, 0xde00de00          // T32: ldr r1, [r0]
    .inst   0xde006001, 0xde00de00          // T32: str r1, [r0]
faults_code_end:
