/* void fiber_switch(void **save, void *to): leaves the running fiber, its registers on its stack and its stack pointer in *save,
 * and goes on where `to` was left. Only what a called function must preserve is kept (System V ABI, x86-64). */
        .text
        .globl  fiber_switch
        .hidden fiber_switch
        .type   fiber_switch, @function
fiber_switch:
        .cfi_startproc
        pushq   %rbp
        pushq   %rbx
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        movq    %rsp, (%rdi)
        movq    %rsi, %rsp
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbx
        popq    %rbp
        ret
        .cfi_endproc
        .size   fiber_switch, .-fiber_switch
        .section .note.GNU-stack, "", @progbits
