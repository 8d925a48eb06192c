// The guest that shows whether an accelerator works (tegu.emulator.kvm): arm64.
// Assembled by:
//   aarch64-linux-gnu-as -o guest.o arm64.S && aarch64-linux-gnu-objcopy -O binary -j .text guest.o guest.bin
        mov     x19, #0x09000000
// The virtual counter must run.
        mrs     x1, cntvct_el0
0:      mrs     x2, cntvct_el0
        cmp     x2, x1
        b.eq    0b
// Say so on the PL011 of QEMU's `virt` board, then PSCI SYSTEM_OFF (0x84000008).
        adr     x3, answer
1:      ldrb    w4, [x3], #1
        cbz     w4, 2f
        strb    w4, [x19]
        b       1b
2:      movz    w0, #0x8400, lsl #16
        movk    w0, #8
        hvc     #0
3:      wfi
        b       3b
answer: .asciz  "tegu: guest runs\n"
