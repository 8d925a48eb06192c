// The guest that shows whether an accelerator works (tegu.emulator.kvm): x86-64.
// Assembled by:
//   as --64 -o guest.o x86-64.S && objcopy -O binary -j .text guest.o guest.bin
        .intel_syntax noprefix
        .set    ORIGIN, 0x100000
        .set    TABLES, 0x200000
        .set    IDT, TABLES + 0x3000
        .code32
// Multiboot 1 header (flags bit 16: the addresses follow): loaded at ORIGIN, entered at `start`
// in 32-bit protected mode without paging.
header: .long   0x1BADB002, 0x00010000, -(0x1BADB002 + 0x00010000)
        .long   ORIGIN, ORIGIN, 0, 0, ORIGIN + (start - header)
// Four zeroed pages, then: one PML4, one PDPT, one page directory that maps the first 4 MiB.
start:  cli
        mov     esp, TABLES
        mov     edi, TABLES
        xor     eax, eax
        mov     ecx, 0x1000
        rep     stosd
        mov     dword ptr [TABLES], TABLES + 0x1003
        mov     dword ptr [TABLES + 0x1000], TABLES + 0x2003
        mov     dword ptr [TABLES + 0x2000], 0x83
        mov     dword ptr [TABLES + 0x2008], 0x200083
// Long mode, with SSE enabled (CR4.OSFXSR), as a kernel enters it.
        mov     eax, TABLES
        mov     cr3, eax
        mov     eax, 0x620
        mov     cr4, eax
        mov     ecx, 0xC0000080
        rdmsr
        or      eax, 0x100
        wrmsr
        mov     eax, 0x80000033
        mov     cr0, eax
        lgdt    [ORIGIN + (gdtr - header)]
        .byte   0xEA
        .long   ORIGIN + (long - header)
        .word   8
        .code64
long:   mov     ax, 16
        mov     ss, ax
        mov     ds, ax
        mov     es, ax
// A BMI2 instruction in ring 0, when CPUID offers it: kernels unpack themselves with these, and
// an accelerator that emulates ring 0 may not know them.
        mov     eax, 7
        xor     ecx, ecx
        cpuid
        bt      ebx, 8
        jnc     1f
        mov     edx, 3
        mov     eax, 5
        shlx    rax, rax, rdx
        cmp     rax, 40
        jne     fail
// The same for a vector instruction.
1:      mov     eax, 40
        movd    xmm0, eax
        paddd   xmm0, xmm0
        movd    eax, xmm0
        cmp     eax, 80
        jne     fail
// Timer interrupts: PIC to vector 32, PIT channel 0 at 1 kHz; ten ticks must arrive.
        lea     rdi, [rip + tick]
        mov     ebx, IDT + 0x20 * 16
        mov     [rbx], di
        mov     dword ptr [rbx + 2], 0x8E000008
        shr     edi, 16
        mov     [rbx + 6], di
        lidt    [rip + idtr]
        mov     al, 0x11
        out     0x20, al
        mov     al, 0x20
        out     0x21, al
        mov     al, 4
        out     0x21, al
        mov     al, 1
        out     0x21, al
        mov     al, 0xFE
        out     0x21, al
        mov     al, 0x34
        out     0x43, al
        mov     al, 0xA9
        out     0x40, al
        mov     al, 0x04
        out     0x40, al
        xor     ebp, ebp
2:      sti
        hlt
        cmp     ebp, 10
        jb      2b
// Say so on the serial port, then reset by the keyboard controller; QEMU has -no-reboot.
        lea     rsi, [rip + answer]
        mov     dx, 0x3F8
3:      lodsb
        test    al, al
        jz      4f
        out     dx, al
        jmp     3b
4:      mov     al, 0xFE
        out     0x64, al
fail:   cli
        hlt
        jmp     fail
tick:   inc     ebp
        push    rax
        mov     al, 0x20
        out     0x20, al
        pop     rax
        iretq
        .balign 8
gdt:    .quad   0, 0x00AF9A000000FFFF, 0x00CF92000000FFFF
gdtr:   .word   23
        .long   ORIGIN + (gdt - header)
idtr:   .word   0x20 * 16 + 15
        .quad   IDT
answer: .asciz  "tegu: guest runs\n"
