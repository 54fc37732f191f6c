// Entry of a VM, and of the further CPUs of the primary.
//
// The stage-1 map (mmu.rs) is switched on before anything is stored: with stage 1 off every access would be to Device
// memory, where exclusives need not work, and stores made then could be shadowed by stale cache lines later. The table
// is constant and needs no relocation, so nothing has to be written first. Until then the three thread-id registers
// hold what x0 and x1 and SCTLR_EL1 held, and FAR_EL1 what time it was, because the tests want to see the registers as
// the hypervisor left them.

.macro stage1_on scratch
    // In: nothing. Clobbers the scratch register only.
    adrp    \scratch, VM_STAGE1
    add     \scratch, \scratch, :lo12:VM_STAGE1
    msr     ttbr0_el1, \scratch
    ldr     \scratch, =VM_MAIR
    msr     mair_el1, \scratch
    ldr     \scratch, =VM_TCR
    msr     tcr_el1, \scratch
    mov     \scratch, #(3 << 20)            // CPACR_EL1.FPEN: no FP traps to EL1.
    msr     cpacr_el1, \scratch
    adrp    \scratch, vm_vectors
    add     \scratch, \scratch, :lo12:vm_vectors
    msr     vbar_el1, \scratch
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    ldr     \scratch, =VM_SCTLR
    msr     sctlr_el1, \scratch
    isb
.endm

.section .text.entry, "ax"
.global vm_start
vm_start:
    msr     tpidr_el0, x0
    msr     tpidrro_el0, x1
    mrs     x0, sctlr_el1
    msr     tpidr_el1, x0
    mrs     x0, cntvct_el0
    msr     far_el1, x0
    stage1_on x0

    // Keep the entry state: x0..x30, SP_EL1, CurrentEL, DAIF, SPSel, SCTLR_EL1, CNTVCT_EL0 (see entry.rs, EntryState).
    adrp    x0, VM_ENTRY_STATE
    add     x0, x0, :lo12:VM_ENTRY_STATE
    stp     x2, x3, [x0, #16]
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    mov     x1, sp
    stp     x30, x1, [x0, #240]
    mrs     x1, tpidr_el0
    mrs     x2, tpidrro_el0
    stp     x1, x2, [x0]
    mrs     x1, CurrentEL
    mrs     x2, daif
    stp     x1, x2, [x0, #256]
    mrs     x1, spsel
    mrs     x2, tpidr_el1
    stp     x1, x2, [x0, #272]
    mrs     x1, far_el1
    str     x1, [x0, #288]

    // Relocate: add the load address to each R_AARCH64_RELATIVE addend.
    adrp    x0, __image_start
    adrp    x1, __rela_start
    add     x1, x1, :lo12:__rela_start
    adrp    x2, __rela_end
    add     x2, x2, :lo12:__rela_end
1:  cmp     x1, x2
    b.hs    2f
    ldp     x3, x4, [x1], #16
    ldr     x5, [x1], #8
    cmp     x4, #1027
    b.ne    .                               // The linker script promises that there are no others.
    add     x5, x5, x0
    str     x5, [x0, x3]
    b       1b

    // Zero .bss.
2:  adrp    x1, __bss_start
    add     x1, x1, :lo12:__bss_start
    adrp    x2, __bss_end
    add     x2, x2, :lo12:__bss_end
3:  cmp     x1, x2
    b.hs    4f
    stp     xzr, xzr, [x1], #16
    b       3b

4:  mov     x0, #0
    b       enter_rust

// A further CPU of the primary. In: x0 = its number, as the context of CPU_ON.
.global vm_cpu_start
vm_cpu_start:
    mov     x2, x0
    stage1_on x0
    mov     x0, x2

enter_rust:
    // In: x0 = number of this CPU. It picks the stack; stacks grow down from the end of each slot.
    adrp    x1, VM_STACKS
    add     x1, x1, :lo12:VM_STACKS
    mov     x2, #VM_STACK_SIZE
    madd    x1, x0, x2, x1
    add     sp, x1, x2
    mov     x29, xzr
    mov     x30, xzr
    bl      vm_rust_start
    b       .
.ltorg
